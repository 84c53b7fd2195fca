"""Tuning of the whole network: what it trains and on which images, its loss, and what it refuses."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch
from tests.calibrate.test_network import BITS, run
from tests.tiny import images, tiny
from torch import nn

import clcalib
from clcalib.calibrate.recipe import Phase, Recipe, Term
from clcalib.calibrate.step import Step
from clcalib.calibrate.streams import StepStream
from clcalib.calibrate.trainable import FixedWeight
from clcalib.calibrate.unit_data import Inside
from clcalib.data.augmentation import AUGMENTATIONS, changed
from clcalib.errors import ArgumentError, DataError, SmallCalibrationWarning, WorseThanUnitsWarning
from clcalib.objectives.contrastive import Contrastive
from clcalib.objectives.lp import Reconstruction
from clcalib.objectives.network import NetworkReconstruction
from clcalib.quant.modules import ActivationQuantizer, IntegerWeight
from clcalib.quant.spec import PerChannel, QParams, QuantSpec

r = clcalib.recipes


def weights_of(model):
    return [own for own in model.modules() if isinstance(own, IntegerWeight)]


def scales_of(model):
    return [own.scale for own in model.modules() if isinstance(own, ActivationQuantizer)]


def test_codes_stay_and_all_else_moves():
    host = r.qdrop(steps=20)
    plain, tuned = run(host), run(clcalib.with_tuning(host, steps=60))
    for before, after in zip(weights_of(plain.model), weights_of(tuned.model), strict=True):
        assert torch.equal(before.codes, after.codes)
        assert not torch.equal(before.scale, after.scale)
    pairs = zip(scales_of(plain.model), scales_of(tuned.model), strict=True)
    assert all(not torch.equal(before, after) for before, after in pairs)
    ours, theirs = (result.model.state_dict() for result in (plain, tuned))
    assert any(not torch.equal(ours[name], theirs[name]) for name in ours if name.endswith("bias"))
    last = tuned.record.last_phase
    assert (last.steps, last.changed_codes, tuned.record.recipe) == (60, 0.0, "qdrop+tuning")


@pytest.mark.parametrize("host", [r.nearest(), r.gptq(), r.fast(steps=20)], ids=lambda own: own.name)
def test_outputs_for_other_images_come_nearer_to_those_of_the_float_network(host):
    shown, model = images(256, seed=5), tiny()
    with torch.no_grad():
        before, after = (
            (run(recipe).model(shown) - model(shown)).square().mean().item()
            for recipe in (host, clcalib.with_tuning(host, steps=100))
        )
    assert after < 0.9 * before


@pytest.mark.parametrize("name", ["soft", "fixed"])
def test_a_rate_that_is_a_share_fits_every_width(name):
    """A step of Adam moves a number by about its rate, so a scale by that share of itself."""
    host, steps, rate = r.nearest(), 20, 1e-3
    tuned = clcalib.with_tuning(host, steps=steps, activation_rate=rate, augmentation=())
    if name == "soft":
        phase = dataclasses.replace(tuned.last_phase, rounding="soft", weight_scale_rate=None)
        tuned = dataclasses.replace(tuned, last_phase=phase)
    pairs = zip(scales_of(run(host).model), scales_of(run(tuned).model), strict=True)
    shares = [(after / before - 1).abs().item() for before, after in pairs]
    assert all(0 < share < steps * rate for share in shares)
    assert {4, 8} <= {own.spec.bits for own in run(host).model.modules() if isinstance(own, ActivationQuantizer)}


@pytest.mark.parametrize("is_channel", [True, False])
def test_the_formula_of_a_weight_with_fixed_codes_and_its_gradient(is_channel):
    generator = torch.Generator().manual_seed(0)
    spec = QuantSpec(3, granularity=PerChannel()) if is_channel else QuantSpec(3)
    shape = (5, 1, 1, 1) if is_channel else ()
    scale, zero_point = torch.rand(shape, generator=generator) + 0.1, torch.full(shape, 3.0)
    codes = torch.randint(0, 8, (5, 2, 3, 3), generator=generator)
    quantizer = IntegerWeight(codes, QParams(scale, zero_point), spec)
    module = FixedWeight(torch.randn(codes.shape), quantizer)
    assert torch.equal(module(), quantizer())
    assert module.rounding is None
    factor = torch.rand(shape, generator=generator) + 0.5
    with torch.no_grad():
        module.scale_factor.copy_(factor)
    expected = scale.numpy() * factor.numpy() * (codes.numpy() - zero_point.numpy())
    np.testing.assert_allclose(module().detach().numpy(), expected, rtol=1e-6)
    hardened = module.hardened()
    assert torch.equal(hardened.codes, quantizer.codes)
    np.testing.assert_allclose(hardened().numpy(), expected, rtol=1e-6)

    module.dtype = torch.float64
    double = module.double()
    double.initial_range = QParams(scale.double(), zero_point.double())

    def function(given):
        return torch.func.functional_call(double, {"scale_factor": given}, ())

    assert torch.autograd.gradcheck(function, (factor.double().requires_grad_(),))


@pytest.mark.parametrize("count", [1, 2, 7, 8])
def test_changed_images_are_mixed_by_halves_and_flipped_every_other_step(count):
    given = images(count)
    assert torch.equal(changed(given, ("flip",), seed=1, number=1), given.flip(3))
    assert torch.equal(changed(given, ("flip",), seed=1, number=2), given)
    for name in ("mixup", "cutmix"):
        found = changed(given, (name,), seed=1, number=1)
        half = count // 2
        assert torch.equal(found[:half], given[:half])
        if count > 2:
            assert not torch.equal(found[half:], given[half:])
    every = tuple(AUGMENTATIONS)
    first, again, other, later = (
        changed(given, every, seed=seed, number=number) for seed, number in ((1, 1), (1, 1), (2, 1), (1, 2))
    )
    assert first.shape == given.shape
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert not torch.equal(first, later)


def seen(monkeypatch, **options):
    """The images of each step: what the float network read, what the quantized one did, and the stored ones."""
    floats, quantized, stored = [], [], []
    plain, forward = Inside.cuts, Step._forward

    def cut(self, outputs, given):
        floats.append(given[0].clone())
        return plain(self, outputs, given)

    def run_forward(self, index, given):
        quantized.append((index, None if given is None else given[0].clone()))
        stored.append(self.data.floating[0].take(index))
        return forward(self, index, given)

    monkeypatch.setattr(Inside, "cuts", cut)
    monkeypatch.setattr(Step, "_forward", run_forward)
    run(clcalib.with_tuning(r.nearest(), steps=4, batch_size=8, **options), seed=3)
    return floats, quantized, stored


def test_both_networks_read_the_same_images_and_no_step_those_of_another(monkeypatch):
    floats, quantized, stored = seen(monkeypatch)
    assert len(floats) == len(quantized) == 4
    for step, (one, (_, other), plain) in enumerate(zip(floats, quantized, stored, strict=True)):
        assert torch.equal(one, other)
        assert not torch.equal(one, plain)
        random = StepStream(clcalib.calibrate.streams.counter_hash(3, 3), 0, 0)  # the network has three units
        random.advance(step)
        assert torch.equal(one, changed(plain, ("flip", "crop", "mixup"), seed=random.seed(), number=step))


def test_without_augmentation_the_images_are_the_stored_ones(monkeypatch):
    floats, quantized, stored = seen(monkeypatch, augmentation=())
    assert all(given is None for _, given in quantized)
    assert all(torch.equal(one, plain) for one, plain in zip(floats, stored, strict=True))


def test_same_seed_same_result_and_saved_is_loaded(tmp_path):
    recipe = clcalib.with_tuning(clcalib.with_biases(r.qdrop(steps=10)), steps=10)
    first, again, other = run(recipe, seed=3), run(recipe, seed=3), run(recipe, seed=4)
    assert torch.equal(first.model(images()), again.model(images()))
    assert not torch.equal(first.model(images()), other.model(images()))
    first.save(tmp_path)
    assert torch.equal(clcalib.load(tmp_path, tiny(seed=9))(images()), first.model(images()))
    assert first.record.recipe == "qdrop+biases+tuning"


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_both_precisions(precision):
    result = run(clcalib.with_tuning(r.gptq(), steps=10), precision=precision)
    assert torch.isfinite(result.model(images())).all()


def test_the_contrastive_term_stays_with_the_units():
    host = r.qdrop(steps=5)
    first = clcalib.with_tuning(clcalib.with_contrastive(host))
    second = clcalib.with_contrastive(clcalib.with_tuning(host))
    assert dataclasses.replace(first, name="") == dataclasses.replace(second, name="")
    kinds = [type(term.objective) for phase in first.all_phases for term in phase.terms]
    assert kinds.count(Contrastive) == 1
    assert [row["phase"] for row in first.contrastive["resolved"]] == [phase.name for phase in first.phases]
    assert math.isfinite(run(clcalib.with_tuning(clcalib.with_contrastive(host), steps=5)).model(images()).sum())


def test_on_images_as_they_are_the_term_is_there_too():
    host = r.qdrop(steps=5)
    first = clcalib.with_tuning(clcalib.with_contrastive(host), augmentation=())
    second = clcalib.with_contrastive(clcalib.with_tuning(host, augmentation=()))
    assert first.last_phase == second.last_phase
    assert [type(term.objective) for term in first.last_phase.terms] == [NetworkReconstruction, Contrastive]


def test_a_recipe_with_nothing_but_tuning_has_no_place_for_the_term():
    with pytest.raises(ArgumentError, match="one that optimises something, got nearest"):
        clcalib.with_contrastive(clcalib.with_tuning(r.nearest()))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 0}, "steps"),
        ({"weight_scale_rate": 0.0}, "weight_scale_rate"),
        ({"bias_rate": -1.0}, "bias_rate"),
        (
            {"augmentation": ("flop",)},
            "augmentation: expected a list of names among flip, crop, mixup, cutmix, got 'fl",
        ),
        ({"augmentation": "flip"}, "augmentation: expected a list of names"),
        ({"augmentation": ("flip", "flip")}, "augmentation: expected each operation once"),
    ],
)
def test_bad_settings_are_told(options, message):
    with pytest.raises(ArgumentError, match=message):
        clcalib.with_tuning(r.qdrop(steps=5), **options)


def test_one_phase_over_the_whole_network_is_enough():
    for first in (clcalib.with_tuning, clcalib.with_last_phase):
        recipe = first(r.qdrop(steps=5))
        for second in (clcalib.with_tuning, clcalib.with_last_phase):
            with pytest.raises(ArgumentError, match="recipe: expected one without a"):
                second(recipe)


def test_phases_that_make_no_sense_are_refused():
    ours = Phase("tuning", 5, (Term(NetworkReconstruction()),), augmentation=("flip",))
    with pytest.raises(ArgumentError, match="phases: expected no augmentation in the units' phases"):
        Recipe("own", phases=(ours,))
    with pytest.raises(ArgumentError, match="values stored before, with augmentation, got Reconstruction"):
        dataclasses.replace(ours, terms=(Term(NetworkReconstruction()), Term(Reconstruction())))
    with pytest.raises(ArgumentError, match='rounding_rate: expected None with rounding="fixed"'):
        dataclasses.replace(ours, rounding="fixed", rounding_rate=0.1)


class Tokens(nn.Module):
    """Reads rows of numbers and not images."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(12, 6), nn.Linear(6, 3)

    def forward(self, x):
        return self.second(torch.relu(self.first(x)))


class Maps(nn.Module):
    """Gives a map and no classes."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 2, 1)

    def forward(self, x):
        return self.second(torch.relu(self.first(x)))


def quantize(model, given, recipe):
    calibration = clcalib.CalibrationSet.from_tensor(given)
    return clcalib.quantize(model.eval(), calibration, recipe=recipe, bits=BITS, measured_images=0)


def test_images_that_cannot_be_changed_are_told_at_the_start():
    recipe = clcalib.with_tuning(r.nearest(), steps=2)
    with pytest.raises(ArgumentError, match=r"calibration: expected images \(N, C, H, W\).*augmentation=\(\)"):
        quantize(Tokens(), torch.randn(40, 12), recipe)
    with (
        pytest.warns(SmallCalibrationWarning),
        pytest.raises(ArgumentError, match="calibration: expected at least two images to mix"),
    ):
        quantize(tiny(), images(1), recipe)


def test_a_network_whose_output_is_a_map():
    torch.manual_seed(0)
    recipe = clcalib.with_tuning(r.nearest(), steps=30, weight_scale_rate=1e-4, activation_rate=1e-4, bias_rate=1e-4)
    result = quantize(Maps(), images(), recipe)
    error = result.record.last_phase.reconstruction_error.calibration
    assert error.after < error.before


@pytest.mark.parametrize("held_out", [0, 8, 32])
def test_a_network_that_gets_worse_is_left_as_the_units_left_it(held_out):
    """Both layers have 8 bits here, and rates that are too large for them."""
    torch.manual_seed(0)
    model, options = Maps().eval(), {"bits": BITS, "measured_images": 64}
    calibration = clcalib.CalibrationSet.from_tensor(images())
    other = clcalib.CalibrationSet.from_tensor(images(held_out, seed=9)) if held_out else None
    recipe = clcalib.with_tuning(r.nearest(), steps=10, weight_scale_rate=0.3, activation_rate=0.3)
    with pytest.warns(WorseThanUnitsWarning, match=f"on {'held-out' if held_out > 16 else 'calibration'} images"):
        kept = clcalib.quantize(model, calibration, recipe=recipe, held_out=other, **options)
    plain = clcalib.quantize(model, calibration, recipe=r.nearest(), held_out=other, **options)
    assert torch.equal(kept.model(images()), plain.model(images()))
    error = kept.record.last_phase.reconstruction_error.calibration
    assert error.after == error.before
    free = clcalib.quantize(model, calibration, recipe=recipe, held_out=other, is_guarded=False, **options)
    assert not torch.equal(free.model(images()), plain.model(images()))


def test_rows_of_numbers_are_tuned_as_they_are():
    torch.manual_seed(0)
    rates = dict.fromkeys(("weight_scale_rate", "activation_rate", "bias_rate"), 1e-4)
    result = quantize(Tokens(), torch.randn(40, 12), clcalib.with_tuning(r.nearest(), augmentation=(), **rates))
    error = result.record.last_phase.reconstruction_error.calibration
    assert error.after < error.before
    with pytest.raises(DataError):
        clcalib.with_tuning(r.nearest(), augmentation=("rotate",))
