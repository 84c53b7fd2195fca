"""``clcalib leaderboard``: the best methods in a sweep's database, what the contrastive term gains, and the cost."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from clcalib.cli.given import Format

EXAMPLES = (
    "[bold]Examples[/bold]\n\n"
    "clcalib leaderboard runs/sweep-small\n\n"
    "clcalib leaderboard runs/study --network resnet20 --widths W2A2\n\n"
    "clcalib leaderboard postgresql://me@host/sweeps --format html --out board.html"
)


def leaderboard_command(
    database: Annotated[
        str, typer.Argument(metavar="FOLDER|DATABASE", help="Output folder of a sweep, its database, or a URL.")
    ],
    *,
    form: Annotated[Format, typer.Option("--format", help="How it is printed.")] = "table",
    network: Annotated[
        list[str] | None, typer.Option("--network", metavar="NAME", help="Of this network only; again for more.")
    ] = None,
    widths: Annotated[
        list[str] | None, typer.Option("--widths", metavar="WIDTHS", help="At these widths only; again for more.")
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", metavar="FILE", help="Write to a file instead.")] = None,
) -> None:
    """Show what a sweep found, the best method first for each network and width.

    A gain is that of the contrastive term: the mean difference between runs
    that are the same in all else, to the seed, with Student's 95 % interval.
    The score is the top-1 accuracy in percent, or the agreement with the float
    network where there are no labels; the time is that of one run.
    """
    from clcalib.cli.actions.leaderboard import show_board

    show_board(database, form, networks=network or (), widths=widths or (), out=out)
