"""Sees to it that a run on several workers ends: whatever becomes of a worker, all begin again where the run was saved.

An attempt is all workers from the last saved state on.  A call whose worker fails begins the next attempt for all, by
one number in the store; every call that sees another number there kills its workers and starts them for that.  So the
workers never have to agree on who is gone, and bits do not depend on it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from types import FrameType

from clcalib.durable.stop import PATIENCE
from clcalib.errors import first_of
from clcalib.team.board import Board, End
from clcalib.team.crew import SILENCE, Crew
from clcalib.team.member import LOST, Report, Seat
from clcalib.team.place import LOOPBACK, Place

ATTEMPTS = 5  # in a row in which nothing was saved
WAIT = 300.0  # seconds for a call that is missing
_TELLING = 5.0  # seconds until it is told who is waited for
_SAVING = PATIENCE + 1.5  # seconds until a worker that was asked to stop is killed
_TIDYING = 4.0  # seconds in which worker 0 comes to the same error, or is asked to end
_PARTING = 10.0  # seconds in which other calls see the end
_TICK = 0.25


@dataclasses.dataclass(frozen=True)
class Run:
    """What the supervisor knows of the run.

    Attributes:
        progress: what is another value when more is saved.
        stopped: what to tell where the run stops and worker 0 cannot say.
        tell: shows a line to the user.
    """

    progress: Callable[[], object]
    stopped: Callable[[], str]
    tell: Callable[[str], None]


class Supervisor:
    """One call's part in a run on several workers.

    Args:
        place: of this call.
        crew: its workers.
        run: what is known of the run.
        settings: what this call was started with, which must be the same for all.
        wait: seconds for a call that is missing, at the start and when a link is down.
        attempts: in a row in which nothing was saved, until the run ends.
        silence: seconds after which a call that does not answer is taken as missing.

    Raises:
        ArgumentError: the address cannot be bound.
    """

    def __init__(
        self,
        place: Place,
        crew: Crew,
        run: Run,
        settings: Mapping[str, str] | None = None,
        *,
        wait: float = WAIT,
        attempts: int = ATTEMPTS,
        silence: float = SILENCE,
    ) -> None:
        self._place, self._crew, self._run = place, crew, run
        self._settings, self._wait, self._attempts, self._silence = dict(settings or {}), wait, attempts, silence
        self._signals = list[int]()
        self._attempt = ""
        self._count = self._fruitless = 0
        self._saved: object = None
        self._missing = dict[int, float]()  # the calls that are waited for, and since when
        self._told = set[int]()
        self._board = Board(place, self._settings)

    def run(self) -> End:
        """Supervise until the run has ended, for all calls in the same way."""
        with self._hearing_signals():
            try:
                end = self._until_the_end()
            finally:
                self._crew.kill()
            if end.is_for_all:
                self._board.end(end)
            self._board.close(_PARTING if self._board.seconds_silent < self._silence else 0.0)
        return end

    def _until_the_end(self) -> End:
        while True:
            self._crew.listen(_TICK)
            self._board.refresh()
            view = self._board.view
            if view.end is not None:
                return view.end
            if self._signals or view.stop is not None:
                return self._stopped()
            if view.is_replaced:
                return End(LOST, f"worker {self._place.ranks[0]} was started by another call, which goes on", False)
            if (end := self._disagreement() or self._absence()) is not None:
                return end
            if self._place.is_first and self._crew.is_done(0):
                return End(0)  # nothing is left to do for the others
            if (failed := self._crew.failure()) is not None:
                if failed.code != LOST:
                    return self._tidied(failed)
                self._crew.kill()
                self._board.advance(self._attempt, failed.message)
            if view.attempt not in ("", self._attempt) and (end := self._begin(view.attempt, view.reason)) is not None:
                return end

    def _tidied(self, failed: Report) -> End:
        """The end by an error that would come again, when worker 0 has left its folder as it should be."""
        end = time.monotonic() + _TIDYING
        while self._place.is_first and self._crew.report_of(0) is None and time.monotonic() < end:
            if time.monotonic() > end - _TIDYING / 2:
                self._crew.ask(0, signal.SIGTERM)
            self._crew.listen(_TICK)
        own = self._crew.report_of(0) if self._place.is_first else None
        told = own if own is not None and own.code == failed.code else failed
        return End(told.code, told.message)

    def _begin(self, attempt: str, reason: str) -> End | None:
        """Start this call's workers for an attempt; the end where there were too many."""
        self._crew.kill()
        if self._place.is_first:
            saved = self._run.progress()
            self._fruitless = self._fruitless + 1 if saved == self._saved else 0
            self._saved = saved
            if self._fruitless >= self._attempts:
                told = f"{reason}; nothing was saved in the last {self._attempts} attempts, so this is given up"
                return End(LOST, f"{told}; {self._run.stopped()}")
            if self._attempt:
                self._run.tell(f"{reason}; all workers begin again where the run was saved")
        self._attempt, self._count = attempt, self._count + 1
        host = LOOPBACK if self._place.is_alone else self._place.host
        self._crew.start(
            [
                Seat(
                    rank=rank,
                    workers=self._place.workers,
                    host=host,
                    port=self._board.port,
                    session=self._place.session,
                    attempt=attempt,
                    is_first=self._count == 1,
                    is_near=self._place.is_alone,
                )
                for rank in self._place.ranks
            ]
        )
        return None

    def _disagreement(self) -> End | None:
        """The end where another call has other settings; worker 0's call says so."""
        for rank, theirs in self._board.view.settings.items() if self._place.is_first else ():
            if differences := _differences(theirs, self._settings):
                told = f"worker {rank} was started with other settings than worker 0: {first_of(differences)}"
                return End(2, f"{told}; give all calls the same")
        return None

    def _absence(self) -> End | None:
        """Wait for calls that are missing, and end the run where that takes too long."""
        now = time.monotonic()
        for rank in self._others_missing():
            since = self._missing.setdefault(rank, now)
            whom = f"worker {rank}" if self._place.is_first else "worker 0's call"
            where = f"{self._place.host}:{self._board.port}"
            if now - since > self._wait:
                told = f"{whom} was not heard at {where} for {self._wait:.0f} seconds"
                return End(LOST, f"{told}; {self._run.stopped()}", self._place.is_first)
            if now - since > _TELLING and rank not in self._told:
                self._told.add(rank)
                self._run.tell(f"waiting for {whom} at {where}")
        return None

    def _others_missing(self) -> list[int]:
        """The calls that do not answer; whoever worked with them cannot go on, and is not left to hang."""
        if not self._place.is_first:
            if self._board.seconds_silent < self._silence and self._board.view.attempt:
                self._missing.clear()
                self._told.clear()
                return []
            if self._crew.numbers and self._board.seconds_silent >= self._silence:
                self._crew.kill()
                self._board.advance(self._attempt, f"worker {self._place.ranks[0]} had lost worker 0")
            return [0]
        found = []
        for rank in range(self._place.workers):
            if rank in self._place.ranks:
                continue
            seconds = self._board.seconds_missing(rank)
            if seconds is not None and seconds < self._silence:
                self._missing.pop(rank, None)
                self._told.discard(rank)
                continue
            if seconds is not None and rank not in self._missing:
                self._board.advance(self._attempt, f"worker {rank} was not heard for {self._silence:.0f} seconds")
            found.append(rank)
        return found

    def _stopped(self) -> End:
        """Let worker 0 save what it has, and end."""
        number = self._signals[0] if self._signals else (self._board.view.stop or signal.SIGTERM)
        self._board.stop(number)
        end = time.monotonic() + _SAVING
        if self._place.is_first:
            self._crew.ask(0, number)
        while time.monotonic() < end and len(self._signals) < 2:
            self._crew.listen(_TICK / 5)
            if self._place.is_first:
                found = self._crew.report_of(0) if self._crew.numbers else None
                if found is not None and found.code not in (LOST, 0):
                    return End(found.code, found.message)
                if found is not None or not self._crew.numbers:
                    break
            elif self._board.view.end is not None:
                return self._board.view.end
        return End(128 + number, self._run.stopped())

    @contextlib.contextmanager
    def _hearing_signals(self) -> Iterator[None]:
        """Inside, SIGINT and SIGTERM are only noted; the second one ends all at once."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def note(number: int, frame: FrameType | None) -> None:
            self._signals.append(number)
            if len(self._signals) > 3:
                os._exit(128 + number)

        before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def _differences(theirs: Mapping[str, str], own: Mapping[str, str]) -> list[str]:
    fields = [name for name in {**own, **theirs} if own.get(name) != theirs.get(name)]
    return [f"{name} is {theirs.get(name, 'not there')}, and not {own.get(name, 'there')}" for name in fields]
