"""``clcalib leaderboard``: the best methods in a sweep's database, what the contrastive term gains, and the cost."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from rich.table import Table
from rich.text import Text

from clcalib.cli.given import Format
from clcalib.cli.messages import new_console
from clcalib.errors import ArgumentError
from clcalib.files import write_atomically
from clcalib.report.formats import new_table
from clcalib.sweep.jobs import DATABASE_FILE
from clcalib.sweep.leaderboard import Leaderboard, leaderboard
from clcalib.sweep.opening import open_database
from clcalib.sweep.showing import PlainTable, as_csv, as_html, as_markdown, narrow_tables_of, state_of


def show_board(
    database: str, form: Format, *, networks: Sequence[str], widths: Sequence[str], out: Path | None
) -> None:
    """Print or write what a sweep found.

    Raises:
        ArgumentError: nothing is left to show, or a table is to be written to a file.
    """
    if out is not None and form == "table":
        raise ArgumentError("--out", "a file for --format csv, markdown or html", "--format table", "name a format")
    store = open_database(_address(database), is_new=False)
    rows = store.rows()
    board = leaderboard(rows, networks, widths)
    if not sum(board.counts.values()) and rows:
        known = sorted({f"{row['network']} {row['widths']}" for row in rows})
        got = " ".join([*networks, *widths])
        raise ArgumentError("--network, --widths", f"some of {', '.join(known)}", got)
    if form == "table":
        _print(board)
        return
    title = f"Sweep {Path(database).name}" if "://" not in database else "Sweep"
    text = {"csv": as_csv, "markdown": as_markdown}[form](board) if form != "html" else as_html(board, title)
    if out is None:
        sys.stdout.write(text)
    else:
        write_atomically(out, text.encode())
        new_console(is_stderr=True).print(Text(str(out)), soft_wrap=True)


def _address(database: str) -> str:
    if "://" in database or not Path(database).is_dir():
        return database
    return str(Path(database) / DATABASE_FILE)


def _print(board: Leaderboard) -> None:
    console = new_console()
    for table in narrow_tables_of(board):
        console.print(_rich(table))
        console.print()
    console.print(state_of(board))


def _rich(table: PlainTable) -> Table:
    found = new_table(f"{table.title} ({table.told})" if table.told else table.title)
    kept = [number for number in range(len(table.columns)) if _is_told(table, number)]
    for number in kept:
        name, is_number = table.columns[number]
        found.add_column(name, justify="right" if is_number else "left", no_wrap=is_number, overflow="fold")
    for index, row in enumerate(table.rows):
        found.add_row(*(Text(row[number]) for number in kept), style="bold green" if index in table.marked else "")
    return found


def _is_told(table: PlainTable, number: int) -> bool:
    """A terminal is narrow: a column without any value is left out."""
    return any(row[number] for row in table.rows) or not table.rows
