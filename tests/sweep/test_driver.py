"""Drivers and workers in real processes, which are killed; and what the database says in the end."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

pytest.importorskip("sqlalchemy", reason="SQLAlchemy is not installed")

from clcalib.sweep.database import Database
from clcalib.sweep.driver import Progress, drive
from clcalib.sweep.processes import Processes
from tests.sweep.small_jobs import digest_of, entry, hashed, odd

ROOT = Path(__file__).parent.parent.parent
Start = Callable[..., subprocess.Popen[str]]


def digests(database: Database) -> dict[int, str]:
    return {row["seed"]: row["digest"] for row in database.rows()}


def begun(marks: Path) -> Counter[int]:
    return Counter(int(path.name.partition("-")[0]) for path in marks.iterdir())


def test_every_run_is_done_once_and_never_again(address: str, tmp_path: Path) -> None:
    database, marks = Database.open(address), tmp_path / "marks"
    marks.mkdir()
    entries = [entry(number, marks=str(marks)) for number in range(4)]
    seen: list[Progress] = []
    summary = drive(entries, hashed, database, Processes(2), watch=seen.append)
    assert (summary.counts["done"], summary.failures, summary.is_stopped) == (4, {}, False)
    assert digests(database) == {number: digest_of(number) for number in range(4)}
    assert {label: state for each in seen for label, state in each.ended.items()} == {
        f"run{number}": "done" for number in range(4)
    }
    assert all(sum(each.counts.values()) == 4 and len(each.labels) <= 2 for each in seen)
    more = [*entries, entry(4, marks=str(marks))]
    assert drive(more, hashed, database, Processes(2)).counts["done"] == 5
    assert begun(marks) == Counter(range(5))


def test_one_that_cannot_be_done_does_not_hold_up_the_others(tmp_path: Path) -> None:
    database = Database.open(tmp_path / "sweep.db")
    entries = [entry(number, **({"mark": str(tmp_path / "mark")} if number == 3 else {})) for number in range(6)]
    summary = drive(entries, odd, database, Processes(2), most_attempts=2)
    assert set(summary.failures) == {"run0", "run1", "run2"}
    assert summary.failures["run0"] == "bits: expected a whole number, got none"
    assert "begun 2 times and never ended; the last time: its process was killed by SIGKILL" in summary.failures["run1"]
    assert "begun 2 times" in summary.failures["run2"]
    assert "RuntimeError: out of luck (small_jobs.py:" in summary.failures["run2"]
    attempts = {row["seed"]: (row["state"], row["attempts"]) for row in database.rows()}
    assert attempts[0] == ("failed", 1)
    assert [attempts[number] for number in (3, 4, 5)] == [("done", 2), ("done", 1), ("done", 1)]


def test_killed_workers_are_replaced(tmp_path: Path) -> None:
    database, pool = Database.open(tmp_path / "sweep.db"), Processes(2)
    killed: list[int] = []

    def kill(progress: Progress) -> None:
        if len(killed) < 5:
            for number in pool.numbers[:1]:
                with contextlib.suppress(ProcessLookupError):  # it has just ended by itself
                    os.kill(number, signal.SIGKILL)
                    killed.append(number)

    entries = [entry(number, seconds=0.2) for number in range(5)]
    summary = drive(entries, hashed, database, pool, watch=kill, most_attempts=99)
    assert (summary.counts["done"], len(killed)) == (5, 5)
    assert digests(database) == {number: digest_of(number) for number in range(5)}


@pytest.fixture
def driver(python_path: str) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Starts a driver."""
    started: list[subprocess.Popen[str]] = []

    def start(database: str, count: int, seconds: float, marks: Path) -> subprocess.Popen[str]:
        started.append(_driver(python_path, database, count, seconds, marks))
        return started[-1]

    yield start
    for each in started:
        with each:
            each.kill()


def _driver(path: str, database: str, count: int, seconds: float, marks: Path) -> subprocess.Popen[str]:
    marks.mkdir(exist_ok=True)
    command = [sys.executable, "-m", "tests.sweep.drive_jobs", database, str(count), str(seconds), str(marks)]
    return subprocess.Popen(command, cwd=ROOT, env=os.environ | {"PYTHONPATH": path}, stdout=subprocess.PIPE, text=True)


def until(happened: object, seconds: float = 600.0) -> None:
    end = time.monotonic() + seconds
    while not happened():  # type: ignore[operator]
        assert time.monotonic() < end, "it never happened"
        time.sleep(0.05)


def test_two_drivers_share_the_work(address_of_drivers: str, tmp_path: Path, driver: Start) -> None:
    marks = tmp_path / "marks"
    both = [driver(address_of_drivers, 8, 0.3, marks) for _ in range(2)]
    assert [each.communicate(timeout=900)[0].strip() for each in both] == ["8", "8"]
    assert begun(marks) == Counter(range(8))
    assert digests(Database.open(address_of_drivers)) == {number: digest_of(number) for number in range(8)}


def test_a_killed_driver_leaves_nothing_behind_and_the_next_one_goes_on(
    address_of_drivers: str, tmp_path: Path, driver: Start
) -> None:
    database, marks = Database.open(address_of_drivers), tmp_path / "marks"
    first = driver(address_of_drivers, 6, 0.5, marks)
    until(lambda: "done" in database.states().values())
    first.kill()
    first.communicate()
    # Its workers notice, give their runs back without an attempt, and end.
    until(lambda: "running" not in database.states().values())
    done = {row["seed"] for row in database.rows() if row["state"] == "done"}
    assert 1 <= len(done) <= 6
    entries = [entry(number, seconds=0.0, marks=str(marks)) for number in range(6)]
    assert drive(entries, hashed, database, Processes(2)).counts["done"] == 6
    assert all(begun(marks)[number] == 1 for number in done)
    assert digests(database) == {number: digest_of(number) for number in range(6)}


def test_a_driver_that_is_asked_to_stop_ends_and_says_how_far_it_is(tmp_path: Path, driver: Start) -> None:
    address, marks = str(tmp_path / "sweep.db"), tmp_path / "marks"
    database = Database.open(address)
    asked = driver(address, 4, 1.0, marks)
    until(lambda: "done" in database.states().values())
    asked.send_signal(signal.SIGINT)
    assert int(asked.communicate(timeout=300)[0]) < 4
    assert asked.returncode == 0
    states = Counter(database.states().values())
    assert states["running"] == 0
    assert states["done"] + states["queued"] == 4


def test_whom_nobody_wants_any_more_begins_nothing(tmp_path: Path) -> None:
    database = Database.open(tmp_path / "sweep.db")
    is_over = threading.Event()
    is_over.set()
    summary = drive([entry(0, seconds=30.0)], hashed, database, Processes(1), is_wanted=lambda: not is_over.is_set())
    assert (summary.is_stopped, summary.counts["queued"]) == (True, 1)
