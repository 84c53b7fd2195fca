"""``clcalib targets``: the runtimes whose rules a network can be calibrated under."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.table import Table
from rich.text import Text

from clcalib.cli.messages import new_console
from clcalib.cli.results import show_json
from clcalib.quant.targets import TARGETS, Target
from clcalib.report.formats import new_table


def show_targets(*, is_json: bool) -> None:
    """Print what is known of each target."""
    if is_json:
        show_json([_facts(target) for target in TARGETS.values()])
        return
    console = new_console()
    console.print(_table(list(TARGETS.values())))
    for target in TARGETS.values():
        for note in target.notes:
            console.print(Text.assemble((f"{target.name}: ", "bold"), note), soft_wrap=False)


def _facts(target: Target) -> dict[str, Any]:
    names = ("name", "summary", "weight_bits", "activation_bits", "is_weight_symmetric", "is_activation_symmetric")
    return {name: getattr(target, name) for name in (*names, "runtime", "file", "notes")}


def _table(rows: Sequence[Target]) -> Table:
    table = new_table("Targets")
    table.add_column("target", style="bold", no_wrap=True)
    table.add_column("weights", no_wrap=True)
    table.add_column("activations", no_wrap=True)
    table.add_column("what it is")
    for row in rows:
        table.add_row(
            row.name,
            _widths(row.weight_bits, row.is_weight_symmetric, row.asymmetric_below),
            _widths(row.activation_bits, row.is_activation_symmetric),
            Text(row.summary),
        )
    return table


def _widths(bits: Sequence[int], is_symmetric: bool, asymmetric_below: int = 0) -> str:
    widths = str(bits[0]) if len(bits) == 1 else f"{bits[0]}-{bits[-1]}"
    if not is_symmetric:
        return f"{widths} bits"
    return f"{widths} bits\nsymmetric" + (f" at {bits[-1]}" if asymmetric_below > bits[0] else "")
