"""``clcalib sweep``: many runs from one file, on processes or on Ray, with a database that knows what is done."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, redirect_stdout
from pathlib import Path
from signal import SIGINT
from typing import Annotated, Any, Literal

import typer
from rich.text import Text

from clcalib.cli.messages import new_console
from clcalib.cli.sweep_progress import JsonWatcher, PlainWatcher, watcher_for
from clcalib.config_sources import parse_assignment, with_absolute_paths
from clcalib.durable.stop import Request, stopping_politely
from clcalib.errors import ArgumentError, EmptyDatabaseError, MissingPackageError, StoppedError, SweepFailedError
from clcalib.forking import CAPTURING
from clcalib.report.tables import new_table
from clcalib.sweep.driver import Summary, drive
from clcalib.sweep.jobs import Executor, require_packages
from clcalib.sweep.opening import open_database
from clcalib.sweep.planning import Plan, plan_of, read_sweep
from clcalib.sweep.processes import Processes
from clcalib.sweep.ray_nodes import RayNodes
from clcalib.sweep.runs import carry_out

Pool = Literal["processes", "ray"]

EXAMPLES = (
    "[bold]Examples[/bold]\n\n"
    "clcalib sweep examples/sweep/small.toml --dry-run\n\n"
    "clcalib sweep examples/sweep/small.toml --workers 2\n\n"
    "clcalib sweep study.toml --only resnet20/W2A2 --set data.calibration=data/cifar10\n\n"
    "clcalib sweep study.toml --on ray --database postgresql://me@host/sweeps --ray-address auto"
)
_PATIENCE = 30.0  # seconds for all workers to save what they have
_SHOWN = 5
# What runs need and import only when they begin; so it is imported once, and not by each run's process.
_PRELOADED = (carry_out.__module__, "clcalib.sweep.database", *CAPTURING)


def sweep(
    file: Annotated[Path, typer.Argument(metavar="SWEEP.toml", help="Which runs: see docs/sweeps.md.")],
    *,
    on: Annotated[Pool, typer.Option("--on", help="Processes of this machine, or Ray.")] = "processes",
    workers: Annotated[
        int | None, typer.Option("--workers", metavar="N", help="Runs at a time here; one for each core by default.")
    ] = None,
    only: Annotated[
        list[str] | None, typer.Option("--only", metavar="TEXT", help="Only runs whose label holds this: demo/W2A2.")
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Set a key of every run: --set data.count=512"),
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="FOLDER", help="Where results go, not the file's.")
    ] = None,
    database: Annotated[
        str | None,
        typer.Option("--database", metavar="PATH|URL", help="By default sweep.db in the output folder (SQLite)."),
    ] = None,
    ray_address: Annotated[
        str | None,
        typer.Option("--ray-address", metavar="HOST:PORT|auto", help="Of a Ray cluster; by default one starts here."),
    ] = None,
    is_dry: Annotated[bool, typer.Option("--dry-run", help="Print the runs and which are done; run nothing.")] = False,
    is_json: Annotated[bool, typer.Option("--json", help="Print a line of JSON for each event.")] = False,
) -> None:
    """Carry out many runs: networks x widths x recipes x contrastive settings x seeds.

    Each run is known by the hash of its configuration, the code and the data,
    and what is done is never done again: start the same file again after
    Ctrl-C, a crash or a change to it, and only what is missing is run.  A
    worker that dies is replaced, and its run goes on from what it saved.

    The database is the truth: SQLite for one machine, PostgreSQL for several.
    clcalib leaderboard shows what is in it.
    """
    if workers is not None and workers < 1:
        raise ArgumentError("--workers", "a whole number, at least 1", workers)
    if ray_address is not None and on != "ray":
        raise ArgumentError("--ray-address", "nothing without --on ray", ray_address, "add --on ray")
    require_packages(database or "", on)
    here = Path.cwd()
    tables = [with_absolute_paths(parse_assignment(each), here) for each in settings or ()]
    plan = plan_of(read_sweep(file), str(file), settings=tables, only=only or (), out=out, database=database)
    require_packages(plan.database, on)
    if is_dry:
        _show_plan(plan, is_json=is_json)
        return
    counts = _run(plan, on, workers or os.cpu_count() or 1, ray_address, is_json=is_json)
    _tell(counts, plan, is_json=is_json)


def _run(plan: Plan, on: Pool, workers: int, ray_address: str | None, *, is_json: bool) -> Summary:
    store = open_database(plan.database)
    if on == "ray" and store.is_file and ray_address not in (None, "auto"):
        remedy = "a file is not seen by other machines; give --database postgresql://user@host/name"
        raise ArgumentError("--database", "a PostgreSQL server beside --ray-address", plan.database, remedy)
    request, log = Request(), new_console(is_stderr=True)
    try:
        executor = _executor(on, workers, ray_address, plan)  # first, for Ray sets a handler of SIGTERM, too
        watcher: JsonWatcher | PlainWatcher = JsonWatcher(sys.stdout) if is_json else watcher_for(log)
        with stopping_politely(_PATIENCE) as request, watcher as watch, _no_prints() if on == "ray" else nullcontext():
            summary = drive(
                plan.entries,
                carry_out,
                store,
                executor,
                watch=watch,
                lease=plan.section.lease,
                most_attempts=plan.section.attempts,
            )
    except KeyboardInterrupt:
        raise StoppedError(_how_to_go_on(), 128 + (request.signal or SIGINT)) from None
    if request.signal is not None and summary.is_stopped:
        done = summary.counts["done"]
        raise StoppedError(f"{_how_to_go_on()} ({done} of {len(plan.entries)} runs are done)", 128 + request.signal)
    return summary


def _executor(on: Pool, workers: int, ray_address: str | None, plan: Plan) -> Executor:
    if on == "processes":
        return Processes(workers, _PRELOADED)
    try:
        return RayNodes(workers, ray_address, gpus=1 if plan.devices == {"cuda"} else 0)
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
        place = plan.section.out if plan.database.startswith(str(plan.section.out)) else _hidden(plan.database)
        console.print(Text(f"what came of them: clcalib leaderboard {place}"), soft_wrap=True)
    if summary.failures:
        lines = [f"\n  - {label}: {why}" for label, why in list(summary.failures.items())[:_SHOWN]]
        more = len(summary.failures) - _SHOWN
        lines += [f"\n  - and {more} more"] if more > 0 else []
        count = f"{len(summary.failures)} of {len(plan.entries)} runs failed"
        raise SweepFailedError(f"{count}; mend what is wrong and start the sweep again:" + "".join(lines))
