"""A whole network whose units are with several workers, as the model that it was captured from answers."""

from __future__ import annotations

from typing import Any

from torch import Tensor, fx, nn

from clcalib.capture.chain import Chain
from clcalib.capture.outputs import end_of, structured


def whole_of(chain: Chain) -> nn.Module:
    """The network, computed where its units are; ``capture.outputs.whole`` for one that is here."""
    returned: Any = end_of(chain.module.graph).args[0]
    if isinstance(returned, fx.Node):
        return _Single(chain.subgraph((chain.input_name,), (returned.name,)))
    flat = chain.subgraph((chain.input_name,), [node.name for node in returned])
    return structured(flat, chain.module.graph)


class _Single(nn.Module):
    """Of a piece that returns one tensor, that tensor."""

    def __init__(self, piece: nn.Module) -> None:
        super().__init__()
        self.piece = piece

    def forward(self, x: Tensor) -> Tensor:
        (output,) = self.piece(x)
        assert isinstance(output, Tensor)
        return output
