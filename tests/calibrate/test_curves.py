"""Losses as they are kept: few points whatever the length, finite, and the same after an interruption."""

from __future__ import annotations

import dataclasses
import json

import pytest

from clcalib.calibrate.curves import CurveRecorder, Curves
from clcalib.calibrate.observer import Observers, SilentObserver


def recorded(steps, most=20, losses=lambda step: {"Loss": 1.0 / (step + 1)}):
    recorder = CurveRecorder(most)
    for step in steps:
        recorder.add(step, losses(step))
    return recorder


@pytest.mark.parametrize("count", [1, 2, 20, 21, 22, 400, 10_001])
def test_few_points_evenly_spread_with_both_ends(count):
    curves = recorded(range(count)).curves()
    assert len(curves.steps) <= 21
    assert len(curves.steps) >= min(count, 10)
    assert (curves.steps[0], curves.steps[-1]) == (0, count - 1)
    gaps = {later - earlier for earlier, later in zip(curves.steps, curves.steps[1:-1], strict=False)}
    assert len(gaps) <= 1
    assert curves.losses["Loss"] == pytest.approx([1 / (step + 1) for step in curves.steps], rel=1e-5)


def test_steps_that_are_told_seldom_are_kept():
    steps = [*range(0, 200, 25), 199]
    assert recorded(steps, 200).curves().steps == tuple(steps)


def test_a_term_that_is_not_due_or_not_finite_has_no_value():
    values = [{"A": 1.0}, {"A": float("nan"), "B": 2.0}, {"A": 3.0, "B": float("inf")}]
    curves = recorded(range(3), losses=lambda step: values[step]).curves()
    assert curves.losses == {"A": (1.0, None, 3.0), "B": (None, 2.0, None)}


def test_a_phase_that_is_done_again_takes_the_place_of_its_first_attempt():
    recorder = recorded(range(7))
    for step in range(4, 9):
        recorder.add(step, {"Loss": 100.0 + step})
    curves = recorder.curves()
    assert curves.steps == tuple(range(9))
    assert curves.losses["Loss"][3:] == (0.25, 104.0, 105.0, 106.0, 107.0, 108.0)


@pytest.mark.parametrize("stop", [1, 17, 64, 150])
def test_what_is_restored_goes_on_as_if_nothing_had_been(stop):
    whole = recorded(range(300)).curves()
    values = json.loads(json.dumps(recorded(range(stop + 5)).values()))
    second = CurveRecorder(20)
    second.restore(values)
    for step in range(stop, 300):
        second.add(step, {"Loss": 1.0 / (step + 1)})
    assert second.curves() == whole


def test_curves_come_back_from_json():
    curves = recorded(range(50)).curves()
    assert Curves.from_values(json.loads(json.dumps(dataclasses.asdict(curves)))) == curves


def test_several_observers_are_told_of_everything_in_their_order():
    told = []

    class Listener(SilentObserver):
        def __init__(self, name):
            self.name = name

        def __getattribute__(self, name):
            if name in ("name", "__class__"):
                return object.__getattribute__(self, name)
            return lambda *values: told.append((self.name, name, values))

    calls = {
        "stage": ("capture",), "policy": ((),), "placed": ((),), "unit_started": (0, 1, "a", "layer", 5),
        "correcting": (1, 2), "step": (3, {"L": 1.0}), "unit_finished": (0, "a", 1.0, 0.5),
        "unit_recalled": (0, 1, "a", 1.0, 0.5), "quality_so_far": (0.5, 0.25, 0.75),
    }  # fmt: skip
    public = {name for name in vars(SilentObserver) if not name.startswith("_")}
    assert set(calls) == public
    observers = Observers(Listener("first"), Listener("second"))
    for name, values in calls.items():
        getattr(observers, name)(*values)
    assert told == [(who, name, values) for name, values in calls.items() for who in ("first", "second")]
