"""The estimate of a run: its parts add up, its memory is that of the stores, and nothing is changed or written."""

from __future__ import annotations

import copy

import pytest
import torch

import clcalib
from clcalib.calibrate.observer import SilentObserver
from clcalib.errors import ArgumentError
from clcalib.timing import TimedUnit
from tests.tiny import images, tiny

BITS = clcalib.Bits(4, 4)


def arguments(count=600, **more):
    held_out = clcalib.CalibrationSet.from_tensor(images(40, seed=4))
    recipe = clcalib.recipes.qdrop(steps=50)
    calibration = clcalib.CalibrationSet.from_tensor(images(count))
    return {"calibration": calibration, "recipe": recipe, "bits": BITS, "held_out": held_out, **more}


def test_steps_that_were_left_out_are_added_phase_by_phase():
    qdrop, brecq = clcalib.recipes.qdrop(steps=9).phases[0], clcalib.recipes.qdrop(steps=109).phases[0]
    unit = TimedUnit("a", "block", start=0.0, end=30.0, reports={0: 5.0, 8: 9.0, 9: 12.0, 17: 28.0})
    assert unit.seconds([(qdrop, brecq), (qdrop, brecq)]) == pytest.approx(30 + 100 * 0.5 + 100 * 2.0)
    assert unit.seconds([]) == 30
    assert TimedUnit("a", "block", 0.0, 3.0).seconds([(qdrop, brecq)]) == 3.0


def test_seconds_grow_with_steps_and_memory_with_images():
    """A clock that counts its own readings makes every measured duration positive, whatever the machine does."""
    ticks = iter(range(10**9))
    evaluation = clcalib.EvaluationSet.from_tensor(images(300, seed=6))
    model, settings = tiny(), arguments(evaluation=evaluation, overrides={"fc": "float"})
    before = copy.deepcopy(model.state_dict())
    found = clcalib.estimate(model, clock=lambda: float(next(ticks)), **settings)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert [(unit.name, unit.steps) for unit in found.units] == [("conv", 50), ("block", 50), ("fc", 50)]
    assert found.seconds == pytest.approx(sum(found.seconds_per_stage.values()))
    stages = ["capture", "keys", "weight ranges", "nearest rounding", "reconstruction", "measures", "evaluation"]
    assert list(found.seconds_per_stage) == stages
    assert found.seconds_per_stage["reconstruction"] >= sum(unit.seconds for unit in found.units)
    assert found.float_layers == ("fc",)
    assert [row.layer for row in found.policy] == ["conv", "block.conv1", "block.conv2", "fc"]

    record = clcalib.quantize(model, **settings).record
    assert found.stored_bytes == pytest.approx(record.stored_bytes, rel=0.05)
    assert (found.spilled_bytes, record.spilled_bytes) == (0, 0)


def test_a_memory_budget_turns_memory_into_disk():
    budget = 1_000_000
    settings = arguments(memory_budget=budget)
    found = clcalib.estimate(tiny(), **settings)
    record = clcalib.quantize(tiny(), **settings).record
    assert found.stored_bytes <= budget
    assert record.stored_bytes <= budget
    assert found.spilled_bytes == pytest.approx(record.spilled_bytes, rel=0.2)
    assert found.spilled_bytes > 0


def test_every_part_of_a_recipe_is_timed():
    recipe = clcalib.with_contrastive(clcalib.recipes.pd_quant(steps=30, correction_steps=60))
    recipe = clcalib.with_last_phase(recipe, steps=40)
    few, many = (clcalib.estimate(tiny(), **arguments(count, recipe=recipe)) for count in (64, 64 * 50))
    assert [unit.steps for unit in few.units] == [30, 30, 30, 40]
    assert many.units[1].seconds > 5 * few.units[1].seconds  # the correction sees each image
    assert many.peak_memory_bytes > few.peak_memory_bytes

    fisher = clcalib.recipes.brecq(steps=20, activation_steps=10, is_fisher_weighted=True)
    assert [unit.steps for unit in clcalib.estimate(tiny(), **arguments(recipe=fisher)).units] == [0, 30, 30]


def test_what_quantize_refuses_is_refused():
    with pytest.raises(ArgumentError, match="nearest layer"):
        clcalib.estimate(tiny(), **arguments(overrides={"blok.*": "W4"}))
    with pytest.raises(TypeError, match="bitz"):
        clcalib.estimate(tiny(), **arguments(bitz=BITS))


def test_the_few_steps_of_a_dry_run_are_not_judged(monkeypatch):
    def fail(*unit):
        raise AssertionError

    monkeypatch.setattr("clcalib.calibrate.walk.worse_than_nearest", fail)
    assert clcalib.estimate(tiny(), **arguments(64)).warnings == ()


def test_the_observer_is_told():
    class Listening(SilentObserver):
        def __init__(self):
            self.names = []

        def unit_finished(self, index, name, error_before, error_after):
            self.names.append(name)

    observer = Listening()
    clcalib.estimate(tiny(), **arguments(64, observer=observer))
    assert observer.names == ["conv", "block", "fc"]


def test_a_part_is_evaluated_within_its_model():
    evaluation = clcalib.EvaluationSet.from_tensor(images(20, seed=6))
    found = clcalib.estimate(tiny(), **arguments(64, submodule="block", evaluation=evaluation))
    assert [row.layer for row in found.policy] == ["conv1", "conv2"]
    assert found.seconds_per_stage["evaluation"] > 0
