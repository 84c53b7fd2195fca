"""The driver of a sweep: has the runs in the database, keeps the workers busy, and looks until nothing is left to do.

It holds no truth.  It may be killed, and started again, and there may be two: what a run's state is, and who may begin
it, the database says.
"""

from __future__ import annotations

import dataclasses
import time
import uuid
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Protocol

from clcalib.durable.stop import is_asked
from clcalib.sweep.jobs import LEASE, Ended, Entry, Executor, Job, Task

if TYPE_CHECKING:
    from clcalib.sweep.database import Database

LOOK = 0.5  # seconds between two looks at the database, unless something ends
MOST_ATTEMPTS = 5


@dataclasses.dataclass(frozen=True)
class Progress:
    """How far a sweep is.

    Attributes:
        counts: state -> number of runs.
        labels: of the runs that this driver's workers are at.
        ended: label -> how, of the runs that ended since the last time.
        seconds: since the start; finished: how many runs were finished since then.
        slots: how many run at a time.
    """

    counts: dict[str, int]
    labels: tuple[str, ...]
    ended: dict[str, str]
    seconds: float
    finished: int
    slots: int

    @property
    def seconds_left(self) -> float | None:
        """If the others take as long as those that are finished; None as long as there are none."""
        left = self.counts["queued"] + self.counts["running"]
        return None if not self.finished else self.seconds / self.finished * left


class Watcher(Protocol):
    """Who is shown how a sweep goes on."""

    def __call__(self, progress: Progress) -> None: ...


@dataclasses.dataclass(frozen=True)
class Summary:
    """How a sweep ended.

    Attributes:
        counts: state -> number of its runs.
        failures: label -> why.
        is_stopped: whether it was asked to end before all was done.
    """

    counts: dict[str, int]
    failures: dict[str, str]
    is_stopped: bool


def drive(
    entries: Sequence[Entry],
    job: Job,
    database: Database,
    executor: Executor,
    *,
    watch: Watcher | None = None,
    lease: float = LEASE,
    most_attempts: int = MOST_ATTEMPTS,
    is_wanted: Callable[[], bool] = lambda: not is_asked(),
) -> Summary:
    """Carry out what is not done yet of some runs, and wait for what others are at.

    Args:
        entries: the runs, in the order in which they are to be begun.
        job: what each is computed by: a function of a module, of the entry's payload.
        database: where they and their results are.
        executor: what the tasks run on; it is stopped at the end, whatever happens.
        watch: told now and then how far it is.
        lease: how long a worker may be silent, in seconds, before its run is another's.
        most_attempts: how often a run is begun whose worker dies, before it is given up.
        is_wanted: whether to go on; by default until a signal asks to stop (``durable.stop``).

    Raises:
        DatabaseError: the database cannot be reached any more.
    """
    driver = _Driver({entry.key: entry for entry in entries}, job, database, executor, lease, most_attempts)
    database.add(entries)
    try:
        while driver.look(watch) and is_wanted():
            driver.wait()
    finally:
        driver.settle(executor.stop())
    driver.look(watch, is_ending=True)
    return driver.summary()


@dataclasses.dataclass
class _Driver:
    entries: dict[str, Entry]
    job: Job
    database: Database
    executor: Executor
    lease: float
    most_attempts: int
    start: float = dataclasses.field(default_factory=time.monotonic)
    active: dict[str, Task] = dataclasses.field(default_factory=dict)
    states: dict[str, str] = dataclasses.field(default_factory=dict)
    stillborn: dict[str, int] = dataclasses.field(default_factory=dict)
    finished: int = 0

    def look(self, watch: Watcher | None, *, is_ending: bool = False) -> bool:
        """Look at the database, begin what there is room for, tell; whether anything is left to do."""
        self.database.give_up(self.most_attempts)
        all_states = self.database.states()
        before, self.states = self.states, {key: all_states[key] for key in self.entries}
        if not is_ending:
            self._submit()
        ended = {
            self.entries[key].label: state
            for key, state in self.states.items()
            if before and state != before[key] and state in ("done", "failed")
        }
        self.finished += sum(state == "done" for state in ended.values())
        if watch is not None:
            watch(self._progress(ended))
        return any(state in ("queued", "running") for state in self.states.values())

    def _submit(self) -> None:
        room = self.executor.slots - len(self.active)
        if room <= 0:
            return
        queued = (key for key, state in self.states.items() if state == "queued" and key not in self.active)
        for key, _ in zip(list(queued), range(room), strict=False):
            task = Task(key, self.entries[key].payload, self.job, self.database.url, uuid.uuid4().hex, self.lease)
            self.active[key] = task
            self.executor.submit(task)

    def wait(self) -> None:
        """Until a task ends, but not for long: others may work on the same runs."""
        self.settle(self.executor.ended(LOOK))

    def settle(self, ended: Sequence[Ended]) -> None:
        """Give back the runs whose workers died."""
        for each in ended:
            self.active.pop(each.task.key, None)
            if each.message is not None:
                self._give_back(each.task, each.message)

    def _give_back(self, task: Task, message: str) -> None:
        if self.database.release(task.key, task.token, is_counted=True, message=message):
            return
        # It died before it had claimed its run, so the database did not count it; or it was done already.
        self.stillborn[task.key] = self.stillborn.get(task.key, 0) + 1
        is_enough = self.stillborn[task.key] >= self.most_attempts
        if is_enough and self.database.claim(task.key, task.token, "the driver", self.lease):
            told = f"was begun {self.most_attempts} times and never ended; the last time: {message}"
            self.database.fail(task.key, task.token, told)

    def _progress(self, ended: dict[str, str]) -> Progress:
        labels = tuple(self.entries[key].label for key in self.active)
        counts = self._counts()
        return Progress(counts, labels, ended, time.monotonic() - self.start, self.finished, self.executor.slots)

    def _counts(self) -> dict[str, int]:
        found = list(self.states.values())
        return {state: found.count(state) for state in ("queued", "running", "done", "failed")}

    def summary(self) -> Summary:
        """How the runs stand now."""
        failures = self.database.failures()
        told = {entry.label: failures[key] for key, entry in self.entries.items() if key in failures}
        counts = self._counts()
        return Summary(counts, told, is_stopped=counts["queued"] + counts["running"] > 0)
