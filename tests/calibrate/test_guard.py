"""A unit that the optimisation made worse goes back to nearest rounding; one that it made better does not."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from tests.tiny import images, tiny

import clcalib
from clcalib.calibrate.recipe import Phase, Recipe, Term
from clcalib.errors import ArgumentError, WorseThanNearestWarning
from clcalib.objectives.lp import Reconstruction

BITS = clcalib.Bits(3, 4)
NEAREST = Recipe("nearest")


def harmful(activation_rate=0.05):
    """A recipe that makes the error as large as it can."""
    term = Term(Reconstruction(), -1.0)
    return Recipe("harmful", phases=(Phase("up", 12, (term,), rounding_rate=0.5, activation_rate=activation_rate),))


def run(recipe, *, held_out=None, **options):
    calibration = clcalib.CalibrationSet.from_tensor(images())
    others = None if held_out is None else clcalib.CalibrationSet.from_tensor(images(held_out, seed=8))
    return clcalib.quantize(tiny(), calibration, recipe=recipe, bits=BITS, held_out=others, **options)


@pytest.mark.filterwarnings("default::clcalib.errors.WorseThanNearestWarning")
@pytest.mark.parametrize(("held_out", "judge"), [(4, "calibration"), (24, "held-out")])
def test_what_does_harm_is_undone(held_out, judge):
    guarded = run(harmful(), held_out=held_out)
    assert [unit.kept for unit in guarded.record.units] == ["nearest"] * 3
    nearest = run(NEAREST, held_out=held_out)
    assert torch.equal(guarded.model(images()), nearest.model(images()))
    assert [f"its error on {judge} images is" in message for message in guarded.record.warnings] == [True] * 3
    for unit in guarded.record.units:
        pair = unit.reconstruction_error.calibration
        assert pair.after == pytest.approx(pair.before, rel=1e-4)


def slightly_worse(monkeypatch, share):
    """Let every unit's error after its optimisation be larger than with nearest rounding by this share."""
    monkeypatch.setattr("clcalib.calibrate.walk.unit_error", lambda *arguments: 1.0)
    monkeypatch.setattr("clcalib.calibrate.guard.unit_error", lambda *arguments: 1.0 + share)


@pytest.mark.filterwarnings("default::clcalib.errors.WorseThanNearestWarning")
@pytest.mark.parametrize(
    ("recipe", "asked", "used", "kept"),
    [
        (clcalib.recipes.qdrop(steps=2), None, 0.0, "nearest"),
        (clcalib.recipes.gptq(), None, 0.0, "nearest"),
        (clcalib.recipes.qdrop(steps=2), 0.04, 0.04, "learned"),
        (clcalib.recipes.pd_quant(steps=2, correction_steps=1), None, 0.05, "learned"),
        (clcalib.with_contrastive(clcalib.recipes.qdrop(steps=2)), None, 0.05, "learned"),
        (clcalib.recipes.brecq(steps=2, activation_steps=1, is_fisher_weighted=True), None, 0.05, "learned"),
        (clcalib.with_contrastive(clcalib.recipes.qdrop(steps=2)), 0.01, 0.01, "nearest"),
    ],
)
def test_how_much_worse_is_worse(recipe, asked, used, kept, monkeypatch):
    """On held-out images nothing, unless a term looks behind the unit; the record says what it was."""
    slightly_worse(monkeypatch, 0.02)
    record = run(recipe, held_out=24, guard_tolerance=asked).record
    assert record.guard_tolerance == used
    assert {unit.kept for unit in record.units[1:]} == {kept}


def test_on_calibration_images_five_percent_are_allowed():
    assert run(clcalib.recipes.qdrop(steps=2), held_out=4).record.guard_tolerance == 0.05
    assert run(NEAREST, is_guarded=False).record.guard_tolerance is None


@pytest.mark.parametrize("value", [-0.1, float("nan"), float("inf"), "5 %", True])
def test_a_nonsense_tolerance_is_told(value):
    with pytest.raises(ArgumentError, match=r"guard_tolerance: expected a share from 0 on, such as 0.05 .*, got"):
        run(NEAREST, guard_tolerance=value)


def test_without_the_guard_it_stays():
    loose = run(harmful(), is_guarded=False)
    assert [unit.kept for unit in loose.record.units] == ["learned"] * 3
    assert not torch.equal(loose.model(images()), run(NEAREST).model(images()))


def test_what_helps_is_kept_bit_for_bit():
    term = Term(Reconstruction())
    recipe = Recipe("plain", phases=(Phase("down", 30, (term,), rounding_rate=1e-2),))
    guarded, loose = (run(recipe, is_guarded=which) for which in (True, False))
    assert [unit.kept for unit in guarded.record.units] == ["learned"] * 3
    assert torch.equal(guarded.model(images()), loose.model(images()))


def test_units_that_nothing_is_done_to_are_nearest():
    assert {unit.kept for unit in run(NEAREST).record.units} == {"nearest"}
    record = run(dataclasses.replace(clcalib.recipes.qdrop(steps=20), skips_first_unit=True)).record
    assert record.units[0].kept == "nearest"
    assert run(clcalib.recipes.gptq()).record.units[1].kept == "learned"


def test_a_result_that_is_worse_than_nearest_rounding_is_told(monkeypatch):
    """Float and nearest rounding are right on all images, the result on none."""
    right, wrong = torch.eye(4)[torch.zeros(20, dtype=torch.int64)], torch.eye(4)[torch.ones(20, dtype=torch.int64)]
    answers = iter([right, right, wrong] * 2)
    monkeypatch.setattr("clcalib.judging.logits", lambda *arguments, **options: next(answers))
    shown = images(20, seed=5)
    cases = ((torch.zeros(20, dtype=torch.int64), "top-1"), (None, "agreement with the float network"))
    for labels, measure in cases:
        evaluation = clcalib.EvaluationSet.from_tensor(shown, labels)
        with pytest.warns(WorseThanNearestWarning, match=f"{measure} on the evaluation images is 0.00 %, .* 100.00 %"):
            record = run(NEAREST, evaluation=evaluation).record
        assert (record.nearest_agreement, record.agreement) == (1, 0)
        assert "did harm" in record.warnings[0]
