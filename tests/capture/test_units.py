from __future__ import annotations

import pytest
import torch
from tests.capture.contract import assert_every_cut_is_exact, assert_units_cover_the_graph
from tests.capture.networks import Awkward, Transformer, UNet, randomise_norms
from torch import nn

from clcalib.capture.chain import capture
from clcalib.capture.describe import describe
from clcalib.errors import ArgumentError, CaptureError
from demo_network import resnet20

BLOCKS = [f"layer{stage}.{block}" for stage in (1, 2, 3) for block in (0, 1, 2)]


@pytest.mark.parametrize("fold", [False, True])
def test_resnet20_has_eleven_block_units(fold: bool) -> None:
    chain = capture(randomise_norms(resnet20()), torch.randn(2, 3, 32, 32), fold=fold)
    assert [unit.name for unit in chain.units] == ["conv1", *BLOCKS, "linear"]
    assert [unit.kind for unit in chain.units] == ["layer", *["block"] * 9, "layer"]
    assert chain.units[1].layers == ("layer1.0.conv1", "layer1.0.conv2")
    operators = {node.name: str(node.target) for node in chain.module.graph.nodes}
    assert all(operators[unit.target] == "aten.relu.default" for unit in chain.units[:-1]), "the final ReLU is inside"
    assert [operators[name] for name in chain.units[-1].nodes] == [
        "aten.adaptive_avg_pool2d.default",
        "aten.reshape.default",
        "aten.linear.default",
    ]
    assert operators[chain.feature_name] == "aten.reshape.default"
    assert len(chain.layers) == 20


def test_resnet20_has_twenty_layer_units() -> None:
    chain = capture(randomise_norms(resnet20()), torch.randn(2, 3, 32, 32), unit="layer")
    names = [f"{block}.conv{index}" for block in BLOCKS for index in (1, 2)]
    assert [unit.name for unit in chain.units] == ["conv1", *names, "linear"]
    second = chain.units[2]  # layer1.0.conv2: its output does not include the addition
    operators = {node.name: str(node.target) for node in chain.module.graph.nodes}
    assert [operators[name] for name in second.inputs] == ["aten.relu.default", "aten.relu.default"]
    assert operators[second.target] == "aten.conv2d.default"
    assert [operators[name] for name in chain.units[3].nodes][:2] == ["aten.add.Tensor", "aten.relu.default"]


def test_inverted_residuals_are_blocks_with_and_without_skip() -> None:
    chain = capture(randomise_norms(Awkward()), torch.randn(2, 3, 32, 32))
    assert [unit.name for unit in chain.units] == [
        "stem.0",
        "blocks.0",
        "blocks.1",
        "blocks.2",
        "blocks.3",
        "head",
    ]
    assert len(chain.units[2].layers) == 5, "squeeze-and-excitation is inside"


def test_transformer_block_is_attention_and_mlp() -> None:
    chain = capture(Transformer().eval(), torch.randn(2, 3, 16, 16))
    assert [unit.layers for unit in chain.units] == [
        ("patch",),
        ("blocks.0.qkv", "blocks.0.proj"),
        ("blocks.0.mlp.0", "blocks.0.mlp.3"),
        ("blocks.1.qkv", "blocks.1.proj"),
        ("blocks.1.mlp.0", "blocks.1.mlp.3"),
        ("head",),
    ]
    assert [unit.name for unit in chain.units] == [
        *("patch", "blocks.0.part1", "blocks.0.mlp", "blocks.1.part1", "blocks.1.mlp", "head"),
    ]


def test_a_network_without_cuts_is_divided_where_only_long_shortcuts_cross() -> None:
    chain = capture(UNet().eval(), torch.randn(2, 3, 8, 8))
    assert len(chain.units) == 13
    assert max(len(unit.outputs) for unit in chain.units) == 6, "the long skips travel along"
    assert len(chain.units[6].layers) == 7, "short ones hold a block together"


def test_patterns_override_the_rules() -> None:
    model = randomise_norms(resnet20())
    example = torch.randn(2, 3, 32, 32)
    chain = capture(model, example, patterns=("layer1", "layer2.*"))
    names = ["conv1", "layer1", "layer2.0", "layer2.1", "layer2.2", "layer3.0", "layer3.1", "layer3.2", "linear"]
    assert [unit.name for unit in chain.units] == names
    assert len(chain.units[1].layers) == 6
    assert_units_cover_the_graph(chain)
    assert_every_cut_is_exact(chain, chain.module, torch.randn(3, 3, 32, 32))
    by_layer = capture(model, example, unit="layer", patterns=("layer1.1",))
    assert [unit.name for unit in by_layer.units][2:5] == ["layer1.0.conv2", "layer1.1", "layer1.2.conv1"]
    assert_every_cut_is_exact(by_layer, by_layer.module, torch.randn(3, 3, 32, 32))
    with pytest.raises(ArgumentError, match=r"expected globs that match a module path, got 'layer9\.\*'"):
        capture(model, example, patterns=("layer9.*",))


def test_a_module_called_twice_gives_two_units() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 3, 1)
            self.head = nn.Linear(3, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.conv(torch.relu(self.conv(x)))
            return self.head(x.mean((2, 3)))

    chain = capture(Twice().eval(), torch.randn(2, 3, 4, 4))
    assert [unit.name for unit in chain.units] == ["conv", "conv#2", "head"]
    assert chain.layers == ("conv", "head")


def test_nothing_to_quantize_is_an_error() -> None:
    with pytest.raises(CaptureError, match="no convolution or linear layer"):
        capture(nn.Sequential(nn.ReLU()).eval(), torch.randn(2, 3, 4, 4))
    with pytest.raises(ArgumentError, match="kind: expected 'layer' or 'block', got 'stage'"):
        capture(resnet20().eval(), torch.randn(2, 3, 32, 32), unit="stage")  # type: ignore[arg-type]


def test_description_counts_parameters_and_work() -> None:
    chain = capture(randomise_norms(resnet20()), torch.randn(2, 3, 32, 32))
    rows = describe(chain)
    assert [row.index for row in rows] == list(range(11))
    assert rows[0].input_shapes == (("N", 3, 32, 32),)
    assert rows[0].output_shapes == (("N", 16, 32, 32),)
    assert rows[0].macs == 32 * 32 * 16 * 3 * 9
    assert rows[-1].output_shapes == (("N", 10),)
    assert rows[-1].macs == 64 * 10
    assert rows[-1].parameters == 64 * 10 + 10
    assert 40e6 < sum(row.macs for row in rows) < 41e6
    assert sum(row.parameters for row in rows) == sum(p.numel() for p in chain.module.parameters())
