"""What the driver of a sweep leaves to other processes, as it needs torch, which the driver does without."""

from __future__ import annotations

import multiprocessing
import signal
import sys
import warnings
from collections.abc import Sequence
from multiprocessing.connection import Connection
from pathlib import Path

from clcalib.errors import ClcalibError, ClcalibWarning
from clcalib.forking import how_it_ended
from clcalib.sweep.jobs import Outcome, Plan

# Of a run: these are imported once, and not by each of its processes.
PRELOADED = ("clcalib.sweep.runs", "clcalib.sweep.database")

_Told = list[tuple[str, type[Warning]]]


def carry_out(payload: str) -> Outcome:
    """The job of a sweep, see ``runs.carry_out``."""
    from clcalib.sweep import runs

    return runs.carry_out(payload)


def plan_elsewhere(
    path: Path, assignments: Sequence[str], only: Sequence[str], out: Path | None, database: str | None
) -> Plan:
    """``planning.plan_from`` in a process of its own, which gives its memory back; here, where torch is loaded anyway.

    Raises:
        ClcalibError: see there.
    """
    request = (path, assignments, only, out, database)
    if "torch" in sys.modules:
        return _plan(request)
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_main, args=(request, theirs), daemon=True)
    process.start()
    theirs.close()
    try:
        answer, told = ours.recv()
    except EOFError:
        process.join()
        raise ClcalibError(f"the process that planned the sweep {how_it_ended(process.exitcode or 0)}") from None
    finally:
        process.terminate()  # where Ctrl-C came here
        process.join()
    for message, category in told:
        warnings.warn(message, category, stacklevel=2)
    if isinstance(answer, Exception):
        raise answer
    found: Plan = answer
    return found


_Request = tuple[Path, Sequence[str], Sequence[str], Path | None, str | None]


def _plan(request: _Request) -> Plan:
    from clcalib.sweep import planning

    return planning.plan_from(*request)


def _main(request: _Request, pipe: Connection) -> None:
    """Send what comes of it, with what was warned of."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the driver too, which ends this process
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("ignore")
        warnings.simplefilter("always", ClcalibWarning)
        answer: Plan | Exception
        try:
            answer = _plan(request)
        except Exception as error:
            answer = error
    told: _Told = [(str(each.message), each.category) for each in heard]
    pipe.send((answer, told))
