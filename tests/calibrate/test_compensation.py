"""Error feedback inside the walk: which layers it reaches, what they see, and that it helps."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from tests.tiny import images, tiny
from torch import nn

import clcalib
from clcalib.calibrate.compensation import compensated
from clcalib.calibrate.recipe import Recipe
from clcalib.calibrate.space import StoreSpace
from clcalib.calibrate.store import as_rows
from clcalib.calibrate.trainable import SoftWeight
from clcalib.capture.chain import capture
from clcalib.quant.error_feedback import error_feedback, input_hessian
from clcalib.quant.insert import insert_quantizers, tensor_at
from clcalib.quant.modules import IntegerWeight
from clcalib.quant.policy import Bits, build_policy
from clcalib.quant.ranges import RANGE_RULES
from clcalib.quant.rounding import nearest
from clcalib.quant.spec import QParams

BITS = Bits(2, None)


def compensate(model: nn.Module, inputs: torch.Tensor) -> tuple[dict[str, IntegerWeight], dict[str, torch.Tensor]]:
    """Each quantized layer's new weight, and its float one, both by the layer's name."""
    chain = capture(model, inputs[:2])
    quantized = insert_quantizers(chain, build_policy(chain.layers, BITS), RANGE_RULES["mse_grid"])
    floats = {layer: tensor_at(chain.module, quantized.sources[layer]) for layer in quantized.weights}
    body = quantized.chain.module
    found = compensated(
        body, {quantized.weights[layer]: floats[layer] for layer in floats}, (as_rows(inputs),), StoreSpace()
    )
    return {layer: found[name] for layer, name in quantized.weights.items() if name in found}, floats


def quantize(recipe: Recipe, bits: Bits = BITS) -> clcalib.QuantizationResult:
    calibration = clcalib.CalibrationSet.from_tensor(images())
    return clcalib.quantize(tiny(), calibration, recipe=recipe, bits=bits, measured_images=0)


def parameters(weight: IntegerWeight) -> QParams:
    return QParams(weight.scale, weight.zero_point)


class Layers(nn.Module):
    """One layer of each kind that error feedback is for, and two that it is not for."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 6, 3, stride=2, padding=1)
        self.depthwise = nn.Conv2d(6, 6, (3, 1), padding=(1, 0), groups=6)
        self.word = nn.Conv2d(6, 6, 3, padding="same")
        self.transposed = nn.ConvTranspose2d(6, 6, 2)
        self.sequence = nn.Conv1d(6, 4, 3, dilation=2)
        self.linear = nn.Linear(4, 5)

    def forward(self, x):
        x = self.transposed(self.word(self.depthwise(self.first(x)).relu()).relu())
        return self.linear(self.sequence(x.flatten(2)).relu().transpose(1, 2)).mean(1)


def test_it_reaches_every_layer_that_has_patches():
    torch.manual_seed(0)
    found, floats = compensate(Layers().eval(), images().cumsum(2).cumsum(3))  # neighbours are alike
    assert set(floats) - set(found) == {"word", "transposed"}
    for layer in ("depthwise", "sequence", "linear"):
        plain = nearest(floats[layer], parameters(found[layer]), found[layer].spec)
        assert not torch.equal(found[layer].codes, plain), layer


def test_each_layer_sees_what_the_rounded_layers_before_it_send():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 6, 3, bias=False), nn.ReLU(), nn.Conv2d(6, 4, 3, bias=False), nn.Flatten())
    found, floats = compensate(model.eval(), images())
    seen = nn.functional.conv2d(images(), found["0"]()).relu()
    second = found["2"]
    expected = error_feedback(floats["2"], parameters(second), second.spec, input_hessian(seen, (3, 3)))
    assert torch.equal(second.codes, expected)


def test_one_dimension_is_two_of_which_one_is_flat():
    torch.manual_seed(0)
    inputs = torch.randn(40, 4, 12).cumsum(2)
    model = nn.Sequential(nn.Conv1d(4, 6, 3, stride=2, padding=1, groups=2), nn.Flatten())
    wide = nn.Sequential(nn.Conv2d(4, 6, (1, 3), stride=(1, 2), padding=(0, 1), groups=2), nn.Flatten())
    wide[0].weight.data, wide[0].bias.data = model[0].weight.data.unsqueeze(2), model[0].bias.data
    narrow, _ = compensate(model.eval(), inputs)
    flat, _ = compensate(wide.eval(), inputs.unsqueeze(2))
    assert torch.equal(narrow["0"].codes, flat["0"].codes.squeeze(2))


@pytest.mark.parametrize("bits", [BITS, Bits(2, 4), Bits(3, 3)])
def test_the_recipe_is_nearer_to_the_float_network_than_nearest_rounding(bits):
    record = quantize(clcalib.recipes.gptq(), bits).record
    errors = [unit.reconstruction_error.calibration for unit in record.units]
    assert sum(error.after for error in errors) < 0.9 * sum(error.before for error in errors)


def test_the_start_share_moves_the_soft_rounding_towards_the_codes():
    """At almost 1 the first step's weights are the codes' own, and a phase that does not move leaves them."""
    alone = quantize(clcalib.recipes.gptq())
    recipe = clcalib.recipes.fast(steps=1, start_share=0.99, rounding_rate=1e-6)
    started = quantize(recipe)
    codes = [[m.codes for m in r.model.modules() if isinstance(m, IntegerWeight)] for r in (alone, started)]
    for a, b in zip(*codes, strict=True):
        assert torch.equal(a, b)
    weight = torch.randn(6, 5)
    quantizer = next(m for m in alone.model.modules() if isinstance(m, IntegerWeight))
    scale = QParams(torch.tensor(0.5), torch.tensor(2.0))
    spec = dataclasses.replace(quantizer.spec, bits=2)
    goal = IntegerWeight(nearest(weight.flip(0), scale, spec), scale, spec)
    near = SoftWeight(torch.lerp(weight, goal(), 0.99), goal)
    assert torch.equal(near.hardened().codes, goal.codes)
