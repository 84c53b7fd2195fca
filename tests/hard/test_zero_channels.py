"""A channel of zeros changes nothing about any other channel: its codes, its scale, its zero point, bit for bit."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import Tensor

import clcalib
from clcalib.errors import ClcalibWarning
from clcalib.quant.error_feedback import error_feedback, input_hessian
from clcalib.quant.ranges import RANGE_RULES
from clcalib.quant.rounding import nearest
from clcalib.quant.spec import PerChannel, QuantSpec
from tests.hard.figures import record, size
from tests.tiny import images, tiny

pytestmark = pytest.mark.usefixtures("exported_once")
CASES = size(2, 60)
KINDS = [(False, False), (True, True), (False, True)]  # symmetric, signed
VALUES = {"zero": 0.0, "-0": -0.0, "constant": 0.3, "1e-12": 1e-12, "denormal": 1e-40}


def weights(seed: int, channels: int = 6) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    spread = 10.0 ** torch.randint(-3, 3, (channels, 1, 1, 1), generator=generator)
    return torch.randn(channels, 4, 3, 3, generator=generator) * spread


def others(tensor: Tensor, channel: int) -> Tensor:
    return torch.cat((tensor[:channel], tensor[channel + 1 :]))


@pytest.mark.parametrize("rule", RANGE_RULES)
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("value", VALUES.values(), ids=list(VALUES))
def test_ranges_and_codes_of_the_other_channels(rule: str, bits: int, value: float) -> None:
    for seed in range(CASES):
        weight, channel = weights(seed), seed % 6
        changed = weight.clone()
        changed[channel] = value
        hessian = input_hessian(torch.randn(8, 4, 6, 6, generator=torch.Generator().manual_seed(seed)), (3, 3))
        for is_symmetric, is_signed in KINDS:
            spec = QuantSpec(bits, is_symmetric, is_signed, PerChannel(0))
            found = [RANGE_RULES[rule](each, spec) for each in (weight, changed)]
            for name in ("scale", "zero_point"):
                before, after = (others(getattr(each, name), channel) for each in found)
                assert torch.equal(before, after), (seed, name)
            rounded = [nearest(each, own, spec) for each, own in zip((weight, changed), found, strict=True)]
            fed_back = [
                error_feedback(each, own, spec, hessian) for each, own in zip((weight, changed), found, strict=True)
            ]
            for before, after in (rounded, fed_back):
                assert torch.equal(others(before, channel), others(after, channel)), seed
            if value in (0.0, 1e-40):
                own = found[1]
                for codes in (rounded[1], fed_back[1]):
                    assert ((codes[channel] - own.zero_point[channel]) * own.scale[channel]).abs().max() <= 1e-37
    record("zero channels", rule=rule, bits=bits, value=value, cases=CASES * len(KINDS), changed=0)


@pytest.mark.parametrize("dead", [0.0, -0.0])
def test_an_input_channel_of_zeros_gets_plain_rounding(dead: float) -> None:
    """Nothing is known of a weight that only ever meets zeros; it takes part in no other weight's correction."""
    for seed in range(CASES):
        inputs = torch.randn(8, 4, 6, 6, generator=torch.Generator().manual_seed(seed))
        inputs[:, 1] = dead
        weight, spec = weights(seed), QuantSpec(4, granularity=PerChannel(0))
        own = RANGE_RULES["mse_grid"](weight, spec)
        hessian = input_hessian(inputs, (3, 3))
        codes = error_feedback(weight, own, spec, hessian)
        assert torch.equal(codes[:, 1], nearest(weight, own, spec)[:, 1])
        changed = weight.clone()
        changed[:, 1] *= 0.5
        again = error_feedback(changed, own, spec, hessian)
        assert torch.equal(codes[:, [0, 2, 3]], again[:, [0, 2, 3]])


@pytest.mark.parametrize("make", [clcalib.recipes.nearest, clcalib.recipes.gptq])
@pytest.mark.parametrize("bits", [2, 8])
def test_in_a_whole_run(make, bits: int) -> None:
    """The first layer reads the same images in both networks, so every other channel of it stays as it is."""
    found = []
    for factor in (1.0, 0.0):
        model = tiny()
        with torch.no_grad():
            model.conv.weight[2] *= factor
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ClcalibWarning)
            result = clcalib.quantize(
                model,
                clcalib.CalibrationSet.from_tensor(images(32)),
                recipe=make(),
                bits=clcalib.Bits(bits, bits),
                first_last_bits="same",
                is_guarded=False,
                measured_images=0,
            )
        found.append(result.quantized.weight("conv"))
    before, after = found
    assert torch.equal(others(before.codes, 2), others(after.codes, 2))
    assert torch.equal(others(before.scale, 2), others(after.scale, 2))
