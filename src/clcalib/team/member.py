"""A worker's process: it holds a line to its supervisor, meets the other workers, and does its job."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from multiprocessing.connection import Connection

from torch._C._distributed_c10d import PrefixStore, Store

from clcalib.durable import stop
from clcalib.errors import Interrupted, WorkerLostError
from clcalib.team.board import connected

LOST = WorkerLostError.code  # the code of a worker that lost another one, and of a run that ended for that
BEAT = 2.0  # seconds between two signs of life
_PATIENCE = stop.PATIENCE + 1.5  # seconds to save and end, when the supervisor is gone
_LATER = 3.0  # seconds in which worker 0, which saves, still has the others
_LOOK = 0.2  # seconds between two looks for other workers


@dataclasses.dataclass(frozen=True)
class Seat:
    """A worker's place in an attempt.

    Args:
        rank, workers: which worker of how many.
        host, port, session: where the store is.
        attempt: its name.
        is_first: whether nothing of the run was saved by an earlier attempt of this supervisor.
        is_near: whether all workers are on this machine.
    """

    rank: int
    workers: int
    host: str
    port: int
    session: str
    attempt: str
    is_first: bool
    is_near: bool


@dataclasses.dataclass(frozen=True)
class Report:
    """What came of a worker: its exit code, what to tell, and whether that is no consequence of another's end."""

    code: int
    message: str = ""
    is_own: bool = True


Job = Callable[[Seat], Report]


def work(job: Job, seat: Seat, pipe: Connection) -> None:
    """Carry out a job in a process that was made for it, and end the process.

    Only worker 0 is heard on stdout and stderr; what another one has to tell, its supervisor does.
    """
    if hasattr(os, "setpgid"):
        with contextlib.suppress(OSError):
            os.setpgid(0, 0)  # Ctrl-C in the terminal reaches the supervisor alone
    lock = threading.Lock()
    threading.Thread(target=_beat, args=(pipe, lock), daemon=True).start()
    threading.Thread(target=_watch, args=(pipe, seat.rank), daemon=True).start()
    if seat.rank != 0 and not os.environ.get("CLCALIB_DEBUG"):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        for handle in (1, 2):
            os.dup2(nowhere, handle)
    report = job(seat)
    with contextlib.suppress(OSError), lock:
        pipe.send(report)
    sys.exit(report.code)


def meet(seat: Seat, begun: Callable[[], None] = lambda: None) -> Store:
    """Wait until all workers of the attempt are there.

    How long is the supervisor's concern, which knows who is missing.

    Args:
        seat: of this worker.
        begun: told once, where some are not there yet.

    Returns:
        the store of this attempt.

    Raises:
        WorkerLostError: the store cannot be reached.
        Interrupted: the run was asked to stop.
    """
    try:
        store = PrefixStore(seat.attempt, connected(seat.host, seat.port, seat.session))
        store.set(f"here/{seat.rank}", "1")
        keys = [f"here/{rank}" for rank in range(seat.workers)]
        while not store.check(keys):
            begun()
            if stop.is_asked():
                raise Interrupted
            time.sleep(_LOOK)
        store.set_timeout(timedelta(seconds=60))
        return store
    except (OSError, RuntimeError) as error:
        raise WorkerLostError(f"the store at {seat.host}:{seat.port} cannot be reached ({error})") from error


def _beat(pipe: Connection, lock: threading.Lock) -> None:
    while True:
        with contextlib.suppress(OSError), lock:
            pipe.send(None)
        time.sleep(BEAT)


def _watch(pipe: Connection, rank: int) -> None:
    """Ask this process to stop when its supervisor is gone, and see to it that it does."""
    with contextlib.suppress(EOFError, OSError):
        pipe.recv()
    if rank != 0:
        time.sleep(_LATER)
    with contextlib.suppress(OSError):
        os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(_PATIENCE)
    os._exit(128 + signal.SIGTERM)
