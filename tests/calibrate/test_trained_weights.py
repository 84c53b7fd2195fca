"""Weights under training: what they become is what they last computed, and trained scales stay usable."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from tests.tiny import images, tiny

import clcalib
from clcalib.calibrate.recipe import Phase, Term
from clcalib.calibrate.trainable import LEAST_FACTOR, SoftWeight, StraightThroughWeight
from clcalib.errors import ArgumentError
from clcalib.objectives.lp import Reconstruction
from clcalib.objectives.rounding_penalty import RoundingPenalty
from clcalib.quant.modules import IntegerWeight
from clcalib.quant.ranges import MseGrid
from clcalib.quant.rounding import nearest
from clcalib.quant.spec import PerChannel, QuantSpec

SPEC = QuantSpec(2, granularity=PerChannel())


def make(shape=(6, 5, 3, 3)):
    weight = torch.randn(shape)
    found = MseGrid()(weight, SPEC)
    return weight, IntegerWeight(nearest(weight, found, SPEC), found, SPEC)


def moved(module):
    """As after some steps: everything that is trained has gone somewhere."""
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.3 * parameter.abs().mean().clamp(min=1.0 if parameter is module.rounding else 0.0)
                           * torch.randn_like(parameter))  # fmt: skip
    return module


def run(recipe, **options):
    calibration = clcalib.CalibrationSet.from_tensor(images())
    bits = options.pop("bits", clcalib.Bits(2, 4))
    options = {"precision": "float32"} | options  # "auto" may change with how busy the machine is
    return clcalib.quantize(tiny(), calibration, recipe=recipe, bits=bits, measured_images=0, **options)


def error(result):
    return sum(unit.reconstruction_error.calibration.after for unit in result.record.units)


@pytest.mark.parametrize("shape", [(6, 5), (6, 5, 3, 3)])
def test_straight_through_hardens_to_its_last_forward_pass(shape):
    weight, quantizer = make(shape)
    module = StraightThroughWeight(weight, quantizer)
    assert torch.equal(module(), quantizer())  # it starts as nearest rounding
    module = moved(module)
    hard = module.hardened()
    assert torch.equal(hard(), module())
    assert not torch.equal(hard.codes, quantizer.codes)
    assert not torch.equal(hard.scale, quantizer.scale)
    module.dtype = torch.bfloat16
    assert torch.equal(module(), hard().bfloat16())


@pytest.mark.parametrize("is_scale_trained", [False, True])
def test_soft_rounding_hardens_to_the_codes_that_it_went_to(is_scale_trained):
    weight, quantizer = make()
    module = moved(SoftWeight(weight, quantizer, is_scale_trained=is_scale_trained))
    with torch.no_grad():
        module.v.copy_(torch.where(module.v >= 0, 50.0, -50.0))  # as the penalty leaves them
    hard = module.hardened()
    torch.testing.assert_close(hard(), module().detach(), rtol=1e-6, atol=1e-7)
    assert torch.equal(hard.scale, quantizer.scale) != is_scale_trained


def test_a_scale_that_is_not_trained_is_no_parameter():
    weight, quantizer = make()
    assert [name for name, _ in SoftWeight(weight, quantizer).named_parameters()] == ["v"]
    fixed = StraightThroughWeight(weight, quantizer, is_scale_trained=False)
    assert [name for name, _ in fixed.named_parameters()] == ["offset"]
    assert torch.equal(fixed.hardened().codes, quantizer.codes)


@pytest.mark.parametrize("kind", [SoftWeight, StraightThroughWeight])
def test_a_trained_scale_stays_positive(kind):
    weight, quantizer = make()
    module = kind(weight, quantizer, is_scale_trained=True)
    with torch.no_grad():
        module.scale_factor[0] = -1.0
    hard = module.hardened()
    assert torch.equal(hard.scale[0], LEAST_FACTOR * quantizer.scale[0])
    assert torch.equal(hard.scale[1:], quantizer.scale[1:])
    assert torch.isfinite(module()).all()


@pytest.mark.parametrize("name", ["genie_m", "straight_through"])
def test_weight_scales_are_trained_and_saved(name, tmp_path):
    result = run(clcalib.recipes.RECIPES[name](steps=40), bits=clcalib.Bits(2, 2))
    scales = [[m.scale for m in r.model.modules() if isinstance(m, IntegerWeight)]
              for r in (result, run(clcalib.recipes.nearest(), bits=clcalib.Bits(2, 2)))]  # fmt: skip
    changed = [not torch.equal(one, other) for one, other in zip(*scales, strict=True)]
    assert changed == [name != "genie_m", True, True, True]  # GENIE-M leaves the stem alone
    assert all((scale > 0).all() for scale in scales[0])
    result.save(tmp_path)
    assert torch.equal(clcalib.load(tmp_path, tiny(seed=9))(images(7)), result.model(images(7)))


@pytest.mark.parametrize("name", ["fast", "straight_through"])
def test_trained_weight_scales_mend_a_bad_range(name):
    """``minmax`` leaves scales that are far too large at 2 bits."""
    recipe = clcalib.recipes.RECIPES[name](steps=60)
    errors = []
    for rate in (2e-2, None):
        phases = tuple(dataclasses.replace(phase, weight_scale_rate=rate) for phase in recipe.phases)
        errors.append(error(run(dataclasses.replace(recipe, phases=phases), weight_range="minmax")))
    assert errors[0] < 0.9 * errors[1]
    assert errors[1] < error(run(clcalib.recipes.nearest(), weight_range="minmax"))


@pytest.mark.parametrize("name", ["genie_m", "straight_through"])
def test_bfloat16_gives_almost_the_same_error(name):
    recipe = clcalib.recipes.RECIPES[name](steps=60)
    low, single, nearest_error = (
        error(run(recipe, precision="bfloat16")), error(run(recipe)), error(run(clcalib.recipes.nearest()))
    )  # fmt: skip
    assert low < nearest_error
    assert low < single + 0.2 * (nearest_error - single)


def test_scale_only_changes_no_code():
    results = [run(clcalib.recipes.scale_only(steps=20)), run(clcalib.recipes.nearest())]
    weights = [[m for m in result.model.modules() if isinstance(m, IntegerWeight)] for result in results]
    assert all(torch.equal(one(), other()) for one, other in zip(*weights, strict=True))
    assert not torch.equal(*(result.model(images()) for result in results))


TERMS = (Term(Reconstruction()),)


@pytest.mark.parametrize(
    ("settings", "argument"),
    [
        ({"rounding": "hard"}, "rounding"),
        ({"weight_scale_rate": 1e-3}, "weight_scale_rate"),
        ({"weight_scale_rate": -1.0, "rounding_rate": 1e-3}, "weight_scale_rate"),
        ({"rounding": "straight_through", "terms": (*TERMS, Term(RoundingPenalty()))}, "terms"),
    ],
)
def test_bad_settings_name_the_argument(settings, argument):
    with pytest.raises(ArgumentError, match=argument):
        Phase(**{"name": "p", "steps": 1, "terms": TERMS} | settings)
