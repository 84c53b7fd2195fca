"""``clcalib sweep``: many runs from one file, on processes or on Ray, with a database that knows what is done."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from clcalib.cli.given import Pool, SweepFlags

EXAMPLES = (
    "[bold]Examples[/bold]\n\n"
    "clcalib sweep examples/sweep/small.toml --dry-run\n\n"
    "clcalib sweep examples/sweep/small.toml --workers 2\n\n"
    "clcalib sweep study.toml --only resnet20/W2A2 --set data.calibration=data/cifar10\n\n"
    "clcalib sweep study.toml --on ray --database postgresql://me@host/sweeps --ray-address auto"
)


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
    from clcalib.cli.actions.sweep import carry_out_all

    flags = SweepFlags(file, on, workers, only or (), settings or (), out, database, ray_address)
    carry_out_all(flags, is_dry=is_dry, is_json=is_json)
