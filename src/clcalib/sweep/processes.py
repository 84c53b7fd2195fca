"""Tasks in processes of this machine: one for each, so that what one leaves or takes with it is no other's concern."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import signal
import threading
import time
from collections.abc import Sequence
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess

from clcalib.durable.stop import PATIENCE
from clcalib.forking import how_it_ended, process_context
from clcalib.sweep.jobs import Ended, Task
from clcalib.sweep.worker import work

_MORE_PATIENCE = 5.0  # seconds in which a worker that was asked to end also gives its run back


@dataclasses.dataclass
class _Worker:
    task: Task
    process: BaseProcess
    lifeline: Connection  # as long as this end is open, the worker goes on


class Processes:
    """Tasks in processes.

    The processes come from a server that has imported the package once, where the system has that (not on Windows).
    They hold a lifeline to their driver: when that goes, by whatever death, they save their state and end.

    Args:
        workers: at most so many at a time.
        preloaded: modules that the jobs need.
    """

    def __init__(self, workers: int, preloaded: Sequence[str] = ()) -> None:
        self._context = process_context([work.__module__, *preloaded])
        self._count = workers
        self._workers: dict[int, _Worker] = {}

    @property
    def slots(self) -> int:
        """How many tasks can run at a time."""
        return self._count

    @property
    def numbers(self) -> list[int]:
        """The numbers of the processes that run."""
        return [worker.process.pid for worker in self._workers.values() if worker.process.pid is not None]

    def submit(self, task: Task) -> None:
        """Begin a task in a process of its own."""
        theirs, ours = self._context.Pipe(duplex=False)
        process = self._context.Process(target=_main, args=(task, theirs), daemon=False)
        process.start()
        theirs.close()
        self._workers[process.sentinel] = _Worker(task, process, ours)

    def ended(self, timeout: float) -> list[Ended]:
        """The tasks that ended since the last call; waits for the first one, ``timeout`` seconds at most."""
        if not self._workers:
            time.sleep(timeout)
            return []
        return [self._buried(sentinel) for sentinel in wait(list(self._workers), timeout) if isinstance(sentinel, int)]

    def _buried(self, sentinel: int) -> Ended:
        worker = self._workers.pop(sentinel)
        worker.process.join()
        worker.lifeline.close()
        code = worker.process.exitcode
        assert code is not None  # it was waited for
        worker.process.close()
        return Ended(worker.task, None if code == 0 else f"its process {how_it_ended(code)}")

    def stop(self) -> list[Ended]:
        """Ask all to end; those that have not in time are killed, and go on from their last saved state."""
        end = time.monotonic() + PATIENCE + _MORE_PATIENCE
        for worker in self._workers.values():
            worker.lifeline.close()
        found: list[Ended] = []
        while self._workers and time.monotonic() < end:
            found += self.ended(0.2)
        for worker in self._workers.values():
            worker.process.kill()
        return [*found, *(self._buried(sentinel) for sentinel in list(self._workers))]


def _main(task: Task, lifeline: Connection) -> None:
    """A worker's process: a group of its own, so that Ctrl-C in the terminal reaches the driver alone."""
    if hasattr(os, "setpgid"):
        with contextlib.suppress(OSError):
            os.setpgid(0, 0)
    threading.Thread(target=_watch, args=(lifeline,), daemon=True).start()
    work(task)


def _watch(lifeline: Connection) -> None:
    """Ask this process to stop when the driver is gone, or has let go."""
    with contextlib.suppress(EOFError, OSError):
        lifeline.recv_bytes()
    signal.raise_signal(signal.SIGTERM) if os.name == "nt" else os.kill(os.getpid(), signal.SIGTERM)
