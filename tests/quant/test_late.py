"""Quantizers behind moves: the same network, bit for bit, in which no move reads codes."""

from __future__ import annotations

import pytest
import torch
from tests.capture.networks import Transformer
from tests.test_widths_for_targets import Forked, Shuffled
from tests.tiny import tiny
from torch import nn
from torch.nn import functional as F

import clcalib
from clcalib.calibrate.caches import round_alone
from clcalib.quant.insert import chain_policy, insert_quantizers
from clcalib.quant.late import with_late_quantizers
from clcalib.quant.modules import ActivationQuantizer
from clcalib.quant.placement import hands_on
from clcalib.quant.ranges import RANGE_RULES
from clcalib.quant.targets import TARGETS

RULE = RANGE_RULES["mse_grid"]


class Moving(nn.Module):
    """Pads with zeros, a pool with a border, parts of several sizes, and a tensor that is read moved and unmoved."""

    def __init__(self):
        super().__init__()
        self.stem, self.left, self.right = nn.Conv2d(3, 6, 3), nn.Conv2d(4, 5, 3), nn.Conv2d(2, 5, 1)
        self.fc = nn.Linear(5, 3)

    def forward(self, x):
        x = F.max_pool2d(F.pad(self.stem(x), (0, 1, 1, 0)), 3, 1, 1)
        first, second = x.split((4, 2), dim=1)
        y = self.left(F.pad(first, (1, 1, 1, 1)))
        return self.fc(F.relu(y + self.right(second.flip(2))).flatten(2).mean(2))


def readers_of_codes(chain):
    quantizers = {name for name, module in chain.module.named_modules() if isinstance(module, ActivationQuantizer)}
    nodes = [node for node in chain.module.graph.nodes if node.op == "call_module" and node.target in quantizers]
    return [user for node in nodes for user in node.users]


@pytest.mark.parametrize("target", ["onnxruntime", "openvino", "paper"])
@pytest.mark.parametrize(("build", "size"), [(Moving, 8), (Shuffled, 8), (Forked, 8), (tiny, 8), (Transformer, 16)])
def test_the_outputs_are_the_same_and_no_move_reads_codes(build, size, target):
    torch.manual_seed(0)
    shown = torch.randn(24, 3, size, size)
    chain, own = clcalib.capture(build().eval(), shown[:2]), TARGETS[target]
    quantized = insert_quantizers(chain, chain_policy(chain, clcalib.Bits(4, 3), target=own), RULE, own.placement)
    round_alone(chain, quantized, shown, RULE)
    code = quantized.chain.module.code
    late = with_late_quantizers(quantized.chain)
    assert torch.equal(late.module(shown), quantized.chain.module(shown))
    assert not torch.equal(late.module(shown), chain.module(shown))
    assert not any(hands_on(reader) for reader in readers_of_codes(late))
    if build in (Moving, Shuffled, Forked) and target != "paper":
        assert any(hands_on(reader) for reader in readers_of_codes(quantized.chain))
    assert quantized.chain.module.code == code  # the caller's stays as it was
