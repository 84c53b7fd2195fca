"""A tracker names what it is told, tells nothing twice, and never ends a run."""

from __future__ import annotations

import logging
import warnings

import pytest
from tests.tracking.small import quantized

from clcalib.calibrate.network import NAME
from clcalib.calibrate.observer import Observer
from clcalib.errors import TrackingWarning
from clcalib.tracking.tracker import Tracker, silenced


class Memory:
    """A sink that keeps everything, and fails where it is told to."""

    def __init__(self, earlier=None, fails_in=None):
        self.earlier, self.fails_in = earlier or {}, fails_in
        self.numbers, self.settings, self.texts, self.results, self.status = [], {}, {}, {}, None

    def begin(self, settings):
        self._fail("begin")
        self.settings |= settings
        return self.earlier

    def number(self, name, value, step):
        self._fail("number")
        self.numbers.append((name, value, step))

    def flush(self):
        self._fail("flush")

    def finish(self, settings, results, texts):
        self._fail("finish")
        self.settings |= settings
        self.results, self.texts = results, texts

    def close(self, status):
        self._fail("close")
        self.status = status

    def _fail(self, where):
        if where == self.fails_in:
            if where != "number":
                warnings.warn("noise of a package", stacklevel=1)
                logging.getLogger("noise").error("of a package")
            raise RuntimeError(f"{where} broke\nand more")

    def steps(self, name):
        return [step for told, _, step in self.numbers if told == name]


def test_a_tracker_is_an_observer():
    observer: Observer = Tracker("memory", Memory())
    public = {name for name in vars(Observer) if not name.startswith("_")}
    assert public <= set(dir(observer))


def test_a_whole_run_is_told():
    sink = Memory()
    with Tracker("memory", sink, {"run.seed": 0}) as tracker:
        result = quantized(observer=tracker)
        tracker.finish(result.record, result.trace)
    units = [unit.name for unit in result.record.units]
    terms = set(result.trace.units[0].losses)
    assert {"Contrastive", "RoundingPenalty"} < terms
    for unit in units:
        for term in terms:
            assert sink.steps(f"loss/{unit}/{term}")[-1] == 29
    for name in (
        "error_before",
        "error_after",
        "error_held_out_after",
        "sqnr_db",
        "bound_after",
        "bound_held_out_after",
    ):
        assert sink.steps(f"units/{name}") == list(range(len(units))), name
    assert set(sink.texts) == {"run.json", "trace.json"}
    assert sink.settings == {"run.seed": 0}
    assert sink.results["result/quantized_top1"] == result.record.quantized_top1
    assert sink.status == "finished"


def test_without_settings_those_of_the_record_are_told(record):
    sink = Memory()
    all_events(Tracker("memory", sink), record)
    assert sink.settings["recipe"] == "qdrop+contrastive"
    assert sink.settings["contrastive.temperature"] == 0.5
    assert "runtime_target" not in sink.settings
    assert set(sink.texts) == {"run.json"}


def test_what_an_earlier_process_told_is_not_told_again():
    sink = Memory({"loss/a/Lp": 20, "units/error_before": 0, "units/error_after": 0})
    tracker = Tracker("memory", sink)
    tracker.unit_recalled(0, 2, "first", 2.0, 1.0)
    tracker.unit_started(1, 2, "a", "layer", 40)
    for step in (10, 20, 30):
        tracker.step(step, {"Lp": 1.0})
    tracker.unit_finished(1, "a", 4.0, 3.0)
    assert sink.numbers == [("loss/a/Lp", 1.0, 30), ("units/error_before", 4.0, 1), ("units/error_after", 3.0, 1)]


def test_a_second_pass_over_the_units_has_names_of_its_own():
    sink = Memory()
    tracker = Tracker("memory", sink)
    for _ in range(2):
        for index, name in enumerate(("a", "b[0]")):
            tracker.unit_started(index, 2, name, "layer", 1)
            tracker.step(0, {"Lp": 1.0})
            tracker.unit_finished(index, name, 2.0, 1.0)
        tracker.unit_started(0, 1, NAME, "network", 1)
        tracker.unit_finished(0, NAME, 2.0, 1.0)
    assert sink.steps("loss/b_0_/Lp") == sink.steps("pass-2/loss/b_0_/Lp") == [0]
    assert sink.steps("units/error_after") == sink.steps("pass-2/units/error_after") == [0, 1]
    assert sink.steps("last_phase/error_after") == sink.steps("pass-2/last_phase/error_after") == [0]


@pytest.mark.parametrize("where", ["number", "flush", "finish", "close"])
def test_a_failure_is_told_once_and_the_run_goes_on(where, record, caplog):
    sink = Memory(fails_in=where)
    with pytest.warns(TrackingWarning, match=f"memory: {where} broke; the run goes on and is tracked no more") as told:
        all_events(Tracker("memory", sink), record)
    assert len(told) == 1
    assert not [each for each in caplog.records if each.name == "noise"]
    assert sink.status == (None if where == "close" else "failed")


@pytest.fixture(scope="module")
def record():
    return quantized(evaluation=None, held_out=None, measured_images=0).record


def all_events(tracker, record):
    with tracker:
        for index in range(3):
            tracker.unit_started(index, 3, f"unit{index}", "layer", 1)
            tracker.step(0, {"Lp": 1.0})
            tracker.unit_finished(index, f"unit{index}", 2.0, 1.0)
        tracker.finish(record)


def test_what_fails_at_the_start_is_told_there():
    with pytest.raises(RuntimeError, match="begin broke"):
        Tracker("memory", Memory(fails_in="begin"))


@pytest.mark.parametrize(
    ("error", "status"), [(ValueError("x"), "failed"), (KeyboardInterrupt(), "stopped"), (SystemExit(), "stopped")]
)
def test_how_a_run_ended_is_told(error, status):
    sink = Memory()
    with pytest.raises(type(error)), Tracker("memory", sink):
        raise error
    assert sink.status == status


def test_notes_of_packages_are_silenced_and_then_heard_again(caplog):
    before = logging.root.manager.disable
    with silenced():
        warnings.warn("not heard", stacklevel=1)
        logging.getLogger("package").error("not heard")
    assert caplog.records == []
    assert logging.root.manager.disable == before
