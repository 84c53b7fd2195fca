"""Networks that are not a plain chain of convolutions, through the whole pipeline."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional as F

import clcalib
from clcalib.calibrate.recipe import Recipe
from clcalib.capture.chain import capture
from clcalib.capture.running import advance
from clcalib.errors import ArgumentError
from clcalib.quant.modules import IntegerWeight
from clcalib.quant.policy import Override
from tests.tiny import images, tiny

QDROP = clcalib.recipes.qdrop(steps=4)
ADAROUND = clcalib.recipes.adaround(steps=4)
BITS = clcalib.Bits(3, 4)


def quantize(model: nn.Module, recipe: Recipe = QDROP, bits: clcalib.Bits = BITS, **options):
    calibration = clcalib.CalibrationSet.from_tensor(images())
    return clcalib.quantize(model.eval(), calibration, recipe=recipe, bits=bits, **options)


def widths(result):
    return {row.layer: (row.weight.bits, None if row.input is None else row.input.bits) for row in result.policy}


class Tokens(nn.Module):
    """A patch embedding and one transformer block, the class read off the mean token."""

    def __init__(self, is_pooled: bool = True) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 16, 2, 2)
        self.norm = nn.LayerNorm(16)
        self.attention = nn.MultiheadAttention(16, 2, batch_first=True)
        self.mlp = nn.Sequential(nn.Linear(16, 32), nn.GELU(), nn.Linear(32, 16))
        self.head = nn.Linear(16, 4)
        self.is_pooled = is_pooled

    def forward(self, x):
        x = self.patches(x).flatten(2).transpose(1, 2)
        y = self.norm(x)
        x = x + self.attention(y, y, y, need_weights=False)[0]
        x = x + self.mlp(x)
        return self.head(x.mean(1) if self.is_pooled else x)


class BareParameter(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.kernel = nn.Parameter(torch.randn(6, 3, 3, 3) * 0.3)
        self.up = nn.ConvTranspose2d(6, 5, 2, 2)
        self.last = nn.Linear(5, 4)

    def forward(self, x):
        return self.last(F.relu(self.up(F.relu(F.conv2d(x, self.kernel, padding=1)))).mean((2, 3)))


class Shared(nn.Module):
    """One convolution called twice, in two units."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 6, 3, padding=1)
        self.shared = nn.Conv2d(6, 6, 3, padding=1)
        self.last = nn.Linear(6, 4)

    def forward(self, x):
        x = F.relu(self.first(x))
        return self.last(F.relu(self.shared(F.relu(self.shared(x)))).mean((2, 3)))


class TwoReaders(nn.Module):
    """The image goes into two layers, and so does the tensor behind them."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(3, 6, 3, padding=1)
        self.c, self.d = nn.Conv2d(6, 6, 3, padding=1), nn.Conv2d(6, 6, 1)
        self.last = nn.Linear(6, 4)

    def forward(self, x):
        x = F.relu(self.a(x) + self.b(x))
        return self.last(F.relu(self.c(x) + self.d(x)).mean((2, 3)))


@pytest.mark.parametrize("recipe", [QDROP, ADAROUND, clcalib.with_contrastive(QDROP), clcalib.recipes.brecq(steps=4)])
@pytest.mark.parametrize("network", [Tokens, BareParameter, Shared, TwoReaders])
def test_every_network_is_quantized_saved_and_loaded(network, recipe, tmp_path):
    result = quantize(network(), recipe)
    result.save(tmp_path)
    assert torch.equal(clcalib.load(tmp_path, network())(images(5)), result.model(images(5)))
    assert torch.isfinite(result.model(images(5))).all()


def test_no_float_weight_stays_in_the_file_or_the_model(tmp_path):
    result = quantize(tiny())
    result.save(tmp_path)
    layers = [row.layer for row in result.policy]
    assert not [
        f"float/{layer}.weight"
        for layer in layers
        if f"float/{layer}.weight" in load_file(tmp_path / "model.safetensors")
    ]
    assert not [name for name in result.model.state_dict() if name in {f"{layer}.weight" for layer in layers}]


def test_a_shared_weight_is_decided_once():
    """The record's error of the first unit is that of the finished network."""
    torch.manual_seed(3)
    model = Shared().eval()
    result = quantize(model, clcalib.recipes.qdrop(steps=30), bits=clcalib.Bits(2, 4))
    chain = capture(model, images(2))
    finished = result.quantized.chain
    states = [(images(),), (images(),)]
    for index, unit in enumerate(chain.units[:2]):
        states = [advance(c.body(index), state) for c, state in zip((chain, finished), states, strict=True)]
        error = (states[0][0] - states[1][0]).square().mean() * 6
        recorded = result.record.units[index].reconstruction_error.calibration.after
        assert recorded == pytest.approx(float(error), rel=1e-3), unit.name


def test_layers_that_read_one_tensor_share_its_width():
    result = quantize(TwoReaders(), overrides={"c": clcalib.Bits(3, 6)})
    assert widths(result) == {"a": (8, None), "b": (3, None), "c": (3, 6), "d": (3, 6), "last": (8, 8)}
    reasons = {row.layer: row.reason for row in result.policy}
    assert "same tensor as c" in reasons["d"]
    assert "image not quantized" in reasons["b"]


def test_an_override_leaves_what_it_does_not_name():
    result = quantize(tiny(), overrides={"conv": Override(weights=4), "fc": Override(weights=4)})
    assert widths(result)["conv"] == (4, None)
    assert widths(result)["fc"] == (4, 8)
    with pytest.raises(ArgumentError, match="overrides"):
        quantize(tiny(), overrides={"fc": 4})


def test_transposed_convolutions_have_a_scale_for_each_output_channel():
    result = quantize(BareParameter(), clcalib.recipes.nearest())
    scales = [module.scale.shape for module in result.model.modules() if isinstance(module, IntegerWeight)]
    assert scales == [(6, 1, 1, 1), (1, 5, 1, 1), (4, 1)]


def test_channels_are_found_where_the_layer_makes_them():
    axes = {unit.name: unit.channel_axis for unit in capture(Tokens().eval(), images(2)).units}
    assert axes["patches"] == 1
    assert {axis for name, axis in axes.items() if name not in ("patches", "head")} == {2}
    assert {unit.channel_axis for unit in capture(tiny(), images(2)).units} == {1}


def test_a_caller_without_gradients_gets_the_same_result():
    with torch.no_grad():
        inside = quantize(tiny(), clcalib.recipes.brecq(steps=5, is_fisher_weighted=True))
    outside = quantize(tiny(), clcalib.recipes.brecq(steps=5, is_fisher_weighted=True))
    assert torch.equal(inside.model(images()), outside.model(images()))


def test_what_needs_classes_refuses_tokens():
    evaluation = clcalib.EvaluationSet.from_tensor(images(4), torch.zeros(4, dtype=torch.long))
    with pytest.raises(ArgumentError, match="evaluation"):
        quantize(Tokens(is_pooled=False), evaluation=evaluation)
    with pytest.raises(ArgumentError, match="false_negatives"):
        quantize(Tokens(is_pooled=False), clcalib.with_contrastive(QDROP, false_negatives="same_prediction"))
    assert quantize(Tokens(is_pooled=False), clcalib.with_contrastive(QDROP)).record.recipe == "qdrop+contrastive"


def test_a_mask_without_negatives_is_refused():
    model = tiny()
    model.fc.bias.data[0] = 1e4
    with pytest.raises(ArgumentError, match="masks every pair"):
        quantize(model, clcalib.with_contrastive(QDROP, false_negatives="same_prediction"))


def test_units_can_be_chosen_by_pattern(tmp_path):
    result = quantize(tiny(), clcalib.recipes.qdrop(steps=3), unit_patterns=["block.conv*"])
    assert [unit.name for unit in result.record.units][1:3] == ["block.conv1", "block.conv2"]
    result.save(tmp_path)
    assert torch.equal(clcalib.load(tmp_path, tiny())(images()), result.model(images()))
