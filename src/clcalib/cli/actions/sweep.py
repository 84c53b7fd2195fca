"""``clcalib sweep``: many runs from one file, on processes or on Ray, with a database that knows what is done."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, redirect_stdout
from pathlib import Path
from signal import SIGINT
from typing import Any

from rich.text import Text

from clcalib.cli.given import SweepFlags
from clcalib.cli.messages import new_console
from clcalib.cli.sweep_progress import JsonWatcher, PlainWatcher, watcher_for
from clcalib.durable.stop import Request, stopping_politely
from clcalib.errors import ArgumentError, EmptyDatabaseError, MissingPackageError, StoppedError, SweepFailedError
from clcalib.forking import CAPTURING
from clcalib.report.formats import new_table
from clcalib.sweep.driver import Summary, drive
from clcalib.sweep.elsewhere import PRELOADED, carry_out, plan_elsewhere
from clcalib.sweep.jobs import Executor, Plan, require_packages
from clcalib.sweep.opening import open_database
from clcalib.sweep.processes import Processes
from clcalib.sweep.ray_nodes import RayNodes

_PATIENCE = 30.0  # seconds for all workers to save what they have
_SHOWN = 5


def carry_out_all(flags: SweepFlags, *, is_dry: bool, is_json: bool) -> None:
    """Carry out what is missing, or show what would be.

    Raises:
        ArgumentError, ConfigError, MissingPackageError: what was given cannot be used.
        StoppedError: it was asked to end.
        SweepFailedError: some runs failed.
    """
    if flags.workers is not None and flags.workers < 1:
        raise ArgumentError("--workers", "a whole number, at least 1", flags.workers)
    if flags.ray_address is not None and flags.pool != "ray":
        raise ArgumentError("--ray-address", "nothing without --on ray", flags.ray_address, "add --on ray")
    require_packages(flags.database or "", flags.pool)
    plan = plan_elsewhere(flags.file, flags.settings, flags.only, flags.out, flags.database)
    require_packages(plan.database, flags.pool)
    if is_dry:
        _show_plan(plan, is_json=is_json)
    else:
        _tell(_run(plan, flags, is_json=is_json), plan, is_json=is_json)


def _run(plan: Plan, flags: SweepFlags, *, is_json: bool) -> Summary:
    store = open_database(plan.database)
    is_ray = flags.pool == "ray"
    if is_ray and store.is_file and flags.ray_address not in (None, "auto"):
        remedy = "a file is not seen by other machines; give --database postgresql://user@host/name"
        raise ArgumentError("--database", "a PostgreSQL server beside --ray-address", plan.database, remedy)
    request, log = Request(), new_console(is_stderr=True)
    try:
        executor = _executor(flags, plan)  # first, for Ray sets a handler of SIGTERM, too
        watcher: JsonWatcher | PlainWatcher = JsonWatcher(sys.stdout) if is_json else watcher_for(log)
        with stopping_politely(_PATIENCE) as request, watcher as watch, _no_prints() if is_ray else nullcontext():
            summary = drive(
                plan.entries,
                carry_out,
                store,
                executor,
                watch=watch,
                lease=plan.lease,
                most_attempts=plan.attempts,
            )
    except KeyboardInterrupt:
        raise StoppedError(_how_to_go_on(), 128 + (request.signal or SIGINT)) from None
    if request.signal is not None and summary.is_stopped:
        done = summary.counts["done"]
        raise StoppedError(f"{_how_to_go_on()} ({done} of {len(plan.entries)} runs are done)", 128 + request.signal)
    return summary


def _executor(flags: SweepFlags, plan: Plan) -> Executor:
    workers = flags.workers or os.cpu_count() or 1
    if flags.pool == "processes":
        return Processes(workers, (*PRELOADED, *CAPTURING))
    try:
        return RayNodes(workers, flags.ray_address, gpus=1 if plan.devices == {"cuda"} else 0)
    except ImportError as error:
        raise MissingPackageError(f'Ray cannot be used: {error}; pip install "clcalib[ray]"') from None


@contextmanager
def _no_prints() -> Iterator[None]:
    """Keep Ray from printing what it thinks of each worker that died; a run's own message is in the database."""
    with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere):
        yield


def _how_to_go_on() -> str:
    return "interrupted; what is finished is in the database, what ran has saved its state; go on with the same command"


def _show_plan(plan: Plan, *, is_json: bool) -> None:
    states = _known_states(plan.database)
    rows = [(entry, states.get(entry.key, "missing")) for entry in plan.entries]
    counts = {
        state: sum(own == state for _, own in rows) for state in ("done", "running", "queued", "failed", "missing")
    }
    if is_json:
        for entry, state in rows:
            sys.stdout.write(json.dumps({"label": entry.label, "key": entry.key, "state": state}) + "\n")
        return
    console = new_console()
    table = new_table(f"{len(rows)} runs")
    table.add_column("run", style="bold", overflow="fold")
    table.add_column("key", no_wrap=True)
    table.add_column("state", no_wrap=True)
    for entry, state in rows:
        table.add_row(Text(entry.label), entry.key[:12], Text(state, style=_STYLES.get(state, "")))
    console.print(table)
    console.print()
    console.print(", ".join(f"{count} {state}" for state, count in counts.items() if count), soft_wrap=True)
    console.print(Text(f"database: {_hidden(plan.database)}"), soft_wrap=True)


def _known_states(database: str) -> dict[str, str]:
    """Key -> state, of a database that may not be there yet, and is not made for a look."""
    if "://" not in database and not Path(database).is_file():
        return {}
    try:
        return open_database(database, is_new=False).states()
    except EmptyDatabaseError:
        return {}


_STYLES = {"done": "green", "failed": "red", "running": "cyan"}


def _hidden(address: str) -> str:
    """A database's address without its password."""
    scheme, is_url, rest = address.partition("://")
    user, has_user, host = rest.rpartition("@")
    return f"{scheme}://{user.partition(':')[0]}@{host}" if is_url and has_user else address


def _tell(summary: Summary, plan: Plan, *, is_json: bool) -> None:
    if is_json:
        values: dict[str, Any] = {"event": "end", **summary.counts, "failures": summary.failures}
        sys.stdout.write(json.dumps({**values, "database": _hidden(plan.database)}) + "\n")
    else:
        console = new_console()
        done = summary.counts["done"]
        console.print(Text(f"{done} of {len(plan.entries)} runs are done: {_hidden(plan.database)}"), soft_wrap=True)
        place = plan.out if plan.database.startswith(str(plan.out)) else _hidden(plan.database)
        console.print(Text(f"what came of them: clcalib leaderboard {place}"), soft_wrap=True)
    if summary.failures:
        lines = [f"\n  - {label}: {why}" for label, why in list(summary.failures.items())[:_SHOWN]]
        more = len(summary.failures) - _SHOWN
        lines += [f"\n  - and {more} more"] if more > 0 else []
        count = f"{len(summary.failures)} of {len(plan.entries)} runs failed"
        raise SweepFailedError(f"{count}; mend what is wrong and start the sweep again:" + "".join(lines))
