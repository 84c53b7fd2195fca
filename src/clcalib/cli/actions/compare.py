"""``clcalib compare``: several runs side by side, with their differences on the same images."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.text import Text

from clcalib.cli.messages import new_console
from clcalib.report.comparing import compare_runs
from clcalib.report.comparison_table import comparison_table, notes, settings_table
from clcalib.report.page.comparison import write_comparison


def put_side_by_side(folders: Sequence[Path], out: Path | None, *, is_json: bool) -> None:
    """Compare runs, and print and write what came of it."""
    comparison = compare_runs(folders)
    if out is not None:
        write_comparison(folders, out)
    if is_json:
        sys.stdout.write(json.dumps(comparison.to_json(), indent=1, ensure_ascii=False) + "\n")
        return
    console = new_console()
    if comparison.differing:
        console.print(settings_table(comparison))
        console.print()
    else:
        console.print("The runs had the same settings.\n")
    console.print(comparison_table(comparison))
    for note in notes(comparison):
        console.print(Text(note), soft_wrap=True)
    if out is not None:
        console.print()
        console.print(Text(str(out)), soft_wrap=True)
