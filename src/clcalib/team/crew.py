"""The workers of one attempt on one machine: a process each, which is seen to live, and killed when it falls silent.

A worker holds a pipe to its supervisor.  It says through it every two seconds that it lives, and in the end what came
of it; when the other end of the pipe is gone, by whatever death, the worker saves what it has and ends.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import time
from collections.abc import Sequence
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path

from clcalib.forking import how_it_ended, process_context
from clcalib.team.member import LOST, Job, Report, Seat, work

SILENCE = 20.0  # seconds without a sign of life
_START = 120.0  # seconds until the first one: imports, on a busy machine
_LATE = 2.0  # seconds in which others may still say why they end


@dataclasses.dataclass
class _Worker:
    rank: int
    process: BaseProcess
    pipe: Connection
    heard: float
    worked: float | None  # seconds of the processor at that time
    has_begun: bool = False
    report: Report | None = None

    @property
    def code(self) -> int | None:
        """What it said, or its exit code, less than 0 for a signal; None as long as it works."""
        return self.process.exitcode if self.report is None else self.report.code


class Crew:
    """The workers of a machine.

    Args:
        job: what each worker does.
        silence: seconds without a sign of life after which a worker is killed.
        preloaded: modules that the job needs.
    """

    def __init__(self, job: Job, silence: float = SILENCE, preloaded: Sequence[str] = ()) -> None:
        self._job, self._silence = job, silence
        self._workers = list[_Worker]()
        self._context = process_context([work.__module__, *preloaded])

    @property
    def numbers(self) -> dict[int, int]:
        """The numbers of the processes, by rank."""
        return {worker.rank: worker.process.pid or 0 for worker in self._workers}

    def start(self, seats: Sequence[Seat]) -> None:
        """Begin an attempt."""
        for seat in seats:
            ours, theirs = self._context.Pipe(duplex=True)
            process = self._context.Process(target=work, args=(self._job, seat, theirs), daemon=False)
            process.start()
            theirs.close()
            self._workers.append(_Worker(seat.rank, process, ours, time.monotonic(), None))

    def listen(self, seconds: float) -> None:
        """Hear the workers, for this long or until one of them says something, and kill who is silent."""
        pipes = {worker.pipe: worker for worker in self._workers if not worker.pipe.closed}
        if not pipes:
            time.sleep(seconds)
            return
        for pipe in wait(list(pipes), seconds):
            assert isinstance(pipe, Connection)
            _hear(pipes[pipe])
        for worker in self._workers:
            if worker.code is None and self._is_silent(worker):
                worker.process.kill()

    def _is_silent(self, worker: _Worker) -> bool:
        if time.monotonic() - worker.heard < (self._silence if worker.has_begun else _START):
            return False
        # A long call of a library may hold up the thread that speaks, while the process works.
        worked = processor_seconds(worker.process.pid or 0)
        is_working = worked is not None and worked != worker.worked
        if is_working:
            worker.heard, worker.worked = time.monotonic(), worked
        return not is_working

    def report_of(self, rank: int) -> Report | None:
        """What came of a worker, None as long as it works."""
        worker = next(each for each in self._workers if each.rank == rank)
        code = worker.code
        if code is None:
            return None
        return worker.report or Report(code if code >= 0 else LOST, f"worker {rank} {how_it_ended(code)}")

    def failure(self) -> Report | None:
        """Why the attempt is over: of those that failed, the one whose failure is its own; None while all is well.

        A worker that lost another one fails, too, often before it is known why that one did.
        """
        if not self._failed():
            return None
        end = time.monotonic() + _LATE
        while time.monotonic() < end and not any(report.code != LOST or report.is_own for report in self._failed()):
            self.listen(0.1)
        found = self._failed()
        others = [report for report in found if report.code != LOST]
        return next(iter([*others, *(report for report in found if report.is_own), *found]))

    def _failed(self) -> list[Report]:
        reports = (self.report_of(worker.rank) for worker in self._workers)
        return [report for report in reports if report is not None and report.code != 0]

    def is_done(self, rank: int) -> bool:
        """Whether a worker has done its work."""
        return any(worker.rank == rank and worker.code == 0 for worker in self._workers)

    def ask(self, rank: int, number: int) -> None:
        """Send a worker a signal."""
        for worker in self._workers:
            if worker.rank == rank and worker.code is None:
                with contextlib.suppress(OSError):
                    os.kill(worker.process.pid or 0, number)

    def kill(self) -> None:
        """End all, and be sure that they are gone."""
        end = time.monotonic() + _LATE
        for worker in self._workers:
            if worker.report is not None:
                worker.process.join(max(0.0, end - time.monotonic()))  # it is about to be gone
            worker.process.kill()
        for worker in self._workers:
            worker.process.join()
            worker.pipe.close()
            worker.process.close()
        self._workers.clear()


def _hear(worker: _Worker) -> None:
    try:
        while worker.pipe.poll():
            said = worker.pipe.recv()
            worker.heard, worker.has_begun = time.monotonic(), True
            worker.worked = processor_seconds(worker.process.pid or 0)
            worker.report = said if isinstance(said, Report) else worker.report
    except (EOFError, OSError):
        worker.pipe.close()
        worker.process.join(_LATE)


def processor_seconds(process: int) -> float | None:
    """What a process has used of the processor, in ticks; None where the system does not tell."""
    try:
        fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
        return float(fields[11]) + float(fields[12])
    except (OSError, ValueError, IndexError):
        return None
