"""A captured network on another device."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from clcalib.capture.chain import capture
from clcalib.capture.placing import move


class Positions(nn.Module):
    """Makes a tensor as long as the batch in each call."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        places = torch.arange(x.shape[0], device=x.device).to(torch.float32)
        return self.layer(x) + places[:, None]


def test_tensors_that_are_made_in_each_call_are_made_where_the_network_is() -> None:
    chain = capture(Positions().eval(), torch.randn(2, 4))
    moved = move(chain.module, torch.device("meta"))
    assert moved is chain.module
    assert moved(torch.empty(5, 4, device="meta")).device.type == "meta"
    devices = {str(value) for node in moved.graph.nodes for value in (*node.args, *node.kwargs.values())
               if isinstance(value, torch.device)}  # fmt: skip
    assert devices == {"meta"}


def test_on_the_device_where_it_is_nothing_changes() -> None:
    chain = capture(Positions().eval(), torch.randn(2, 4))
    x, code = torch.randn(5, 4), chain.module.code
    expected = chain.module(x)
    move(chain.module, torch.device("cpu"))
    assert chain.module.code == code
    assert torch.equal(chain.module(x), expected)
