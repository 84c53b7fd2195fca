"""The simulator of steps: what it must say where the answer is known."""

from __future__ import annotations

import dataclasses
import importlib.util
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parents[2] / "benchmarks"
pytestmark = pytest.mark.skipif(not FOLDER.exists(), reason="the benchmarks are not part of this copy")


@pytest.fixture
def simulator(monkeypatch: pytest.MonkeyPatch):  # type: ignore[no-untyped-def]
    monkeypatch.syspath_prepend(str(FOLDER))
    spec = importlib.util.spec_from_file_location("scaling_simulator", FOLDER / "scaling_simulator.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "scaling_simulator", module)
    spec.loader.exec_module(module)
    return module


def test_without_messages_workers_share_all_but_the_step_itself(simulator) -> None:  # type: ignore[no-untyped-def]
    step = simulator.Step(shard_seconds=2.0, own_seconds=1.0, row_bytes=0, latency=0.0, bandwidth=1.0)
    assert [step.seconds(workers, 4) for workers in (1, 2, 4)] == [9.0, 5.0, 3.0]
    assert dataclasses.replace(step, cores=2).seconds(4, 4) == 6.0  # two shards on each core, and two steps


def test_exchanges_hide_behind_shards_until_they_take_longer(simulator) -> None:  # type: ignore[no-untyped-def]
    hidden = simulator.Step(shard_seconds=1.0, own_seconds=0.0, row_bytes=50, latency=0.0, bandwidth=100)
    assert hidden.seconds(2, 8) == 4.0 + 0.5
    assert not hidden.is_saturated(2)
    bound = dataclasses.replace(hidden, row_bytes=200)
    assert bound.seconds(2, 8) == 1.0 + 4 * 2.0  # the link is never idle again
    assert bound.is_saturated(2)


def test_a_shard_that_takes_less_than_is_told_saturates_the_link(simulator) -> None:  # type: ignore[no-untyped-def]
    rows = simulator.exchanges()
    assert len(rows) == len(simulator.UNITS) * len(simulator.LINKS | simulator.GPU_LINKS)
    for row in rows:
        latency, bandwidth = (simulator.LINKS | simulator.GPU_LINKS)[row["link"]]
        for workers, milliseconds in row["ms"].items():
            made = [
                simulator.Step(milliseconds / 1e3 * part, 0.0, 4.0 * simulator.UNITS[row["unit"]], latency, bandwidth)
                for part in (0.99, 1.01)
            ]
            assert [step.is_saturated(workers) for step in made] == [True, False]


def test_a_fit_gives_back_what_it_was_made_of(simulator) -> None:  # type: ignore[no-untyped-def]
    step = simulator.Step(0.5, 0.25, 100.0, 0.01, 1000.0, 2)
    one, two = step.seconds(1, 4), step.seconds(2, 4)
    found = simulator.fitted(one, two, 4, 100.0, 0.01, 1000.0, 2)
    assert found.shard_seconds == pytest.approx(0.5)
    assert found.own_seconds == pytest.approx(0.25)
