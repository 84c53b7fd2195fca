"""The kinds of layers, and the operators that stay in float."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from clcalib.capture.chain import capture
from clcalib.capture.describe import float_operators, layer_kinds
from clcalib.quant.insert import chain_policy
from clcalib.quant.policy import Bits


class Mixed(nn.Module):
    """Every kind of layer, and a product of two activations."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.grouped = nn.Conv2d(8, 8, 3, padding=1, groups=2)
        self.depthwise = nn.Conv2d(8, 16, 3, padding=1, groups=8)
        self.up = nn.ConvTranspose2d(16, 8, 2, 2)
        self.head = nn.Linear(8, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.stem(x))
        x = self.up(F.gelu(self.depthwise(self.grouped(x))))
        rows = x.flatten(2)
        scores = torch.softmax(rows.transpose(1, 2) @ rows, -1)
        return self.head((rows @ scores).mean(2))


def test_kinds_say_how_groups_divide_the_channels() -> None:
    chain = capture(Mixed().eval(), torch.randn(2, 3, 4, 4))
    assert layer_kinds(chain.module) == {
        "stem": "conv2d",
        "grouped": "grouped conv2d",
        "depthwise": "depthwise conv2d",
        "up": "conv_transpose2d",
        "head": "linear",
    }
    rows = {row.layer: row for row in chain_policy(chain, Bits(2, 4), overrides={"@depthwise": "W8", "up": "float"})}
    assert rows["depthwise"].weight is not None
    assert rows["depthwise"].weight.bits == 8
    assert rows["up"].weight is None
    assert rows["up"].kind == "conv_transpose2d"


def test_products_and_functions_that_stay_in_float_are_counted() -> None:
    chain = capture(Mixed().eval(), torch.randn(2, 3, 4, 4))
    assert float_operators(chain, ()) == {"matmul": 2, "gelu": 1, "softmax": 1}
    assert float_operators(chain, chain.products[:1]) == {"matmul": 1, "gelu": 1, "softmax": 1}
