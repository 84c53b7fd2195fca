"""The losses of a run as a file: written with the result, the same for the same run, and checked when it is read."""

from __future__ import annotations

import functools
import json

import pytest
from tests.tiny import images, tiny

import clcalib
from clcalib.calibrate.curves import CurveRecorder
from clcalib.calibrate.journal import Journal
from clcalib.errors import CheckpointError, NumericalError
from clcalib.report.trace import RunTrace, UnitCurves, read_trace, write_trace

restore = CurveRecorder.restore


def quantized(recipe, **options):
    calibration = clcalib.CalibrationSet.from_tensor(images(32))
    return clcalib.quantize(tiny(), calibration, recipe=recipe, bits=clcalib.Bits(4, 4), measured_images=0, **options)


def test_a_run_leaves_the_losses_of_every_unit(tmp_path):
    recipe = clcalib.with_last_phase(clcalib.recipes.qdrop(steps=30), steps=12)
    result = quantized(recipe)
    result.save(tmp_path)
    found = read_trace(tmp_path / "trace.json")
    assert found == result.trace
    assert [unit.name for unit in found.units] == [unit.name for unit in result.record.units]
    for unit in found.units:
        assert unit.steps == tuple(range(30))
        assert set(unit.losses) == {"Reconstruction", "RoundingPenalty"}
    assert found.last_phase is not None
    assert (found.last_phase.name, found.last_phase.steps) == ("whole network", tuple(range(12)))


def test_the_same_run_leaves_the_same_file(tmp_path):
    for name in ("a", "b"):
        write_trace(quantized(clcalib.recipes.qdrop(steps=9)).trace, tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_an_interrupted_run_leaves_the_losses_of_the_whole_one(tmp_path):
    class Stop(clcalib.calibrate.observer.SilentObserver):
        def unit_started(self, index, count, name, kind, steps):
            if index == 2:
                raise KeyboardInterrupt

    recipe = clcalib.recipes.qdrop(steps=9)
    with pytest.raises(KeyboardInterrupt):
        quantized(recipe, state_folder=tmp_path, observer=Stop())
    resumed = quantized(recipe, state_folder=tmp_path, is_resumed=True)
    assert resumed.record.resumptions == 1
    assert resumed.trace == quantized(recipe).trace


def test_an_interruption_inside_a_unit_changes_no_losses(tmp_path, monkeypatch):
    class Stop(clcalib.calibrate.observer.SilentObserver):
        def step(self, step, losses):
            if step == 50:
                raise KeyboardInterrupt

    monkeypatch.setattr("clcalib.pipeline.Journal", functools.partial(Journal, snapshot_seconds=0.0))
    recipe = clcalib.recipes.qdrop(steps=60)
    with pytest.raises(KeyboardInterrupt):
        quantized(recipe, state_folder=tmp_path, observer=Stop())
    begun = []
    monkeypatch.setattr(CurveRecorder, "restore", lambda self, values: begun.append(values) or restore(self, values))
    resumed = quantized(recipe, state_folder=tmp_path, is_resumed=True)
    assert [len(values["steps"]) for values in begun] == [50]
    assert resumed.trace == quantized(recipe).trace


def test_nothing_was_optimised_and_so_there_are_no_losses():
    assert quantized(clcalib.recipes.nearest()).trace.units[0] == UnitCurves(name="conv")


SOUND = {"schema_version": 1, "units": [{"name": "a", "steps": [0, 5], "losses": {"L": [1.0, None]}}]}


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"schema_version": 2}, "schema_version"),
        ({"more": 1}, "more"),
        ({"units": [{"name": "a", "steps": [0, 5], "losses": {"L": [1.0]}}]}, "units.0"),
        ({"units": [{"name": "a", "steps": [5, 0], "losses": {}}]}, "units.0"),
        ({"units": [{"name": "a", "steps": [-1], "losses": {}}]}, "units.0.steps.0"),
        ({"units": "a"}, "units"),
    ],
)
def test_a_damaged_file_is_refused_with_its_name_and_field(tmp_path, change, field):
    path = tmp_path / "trace.json"
    path.write_text(json.dumps(SOUND))
    assert read_trace(path) == RunTrace.model_validate(SOUND)
    path.write_text(json.dumps(SOUND | change))
    with pytest.raises(CheckpointError, match=r"trace.json: not a trace of version 1: .*clcalib quantize") as caught:
        read_trace(path)
    assert f" {field}: " in str(caught.value)


@pytest.mark.parametrize("text", ["", "[1]", "[" * 100_000, "null"])
def test_what_is_no_trace_is_refused(tmp_path, text):
    (tmp_path / "trace.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"trace.json"):
        read_trace(tmp_path / "trace.json")


def test_numbers_that_are_not_finite_are_refused(tmp_path):
    (tmp_path / "trace.json").write_text(json.dumps(SOUND).replace("1.0", "NaN"))
    with pytest.raises(NumericalError, match=r"trace.json: .*losses.L\[0\]"):
        read_trace(tmp_path / "trace.json")
