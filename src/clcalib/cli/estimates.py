"""What ``--dry-run`` prints."""

from __future__ import annotations

from rich.table import Table
from rich.text import Text

from clcalib.estimate import Estimate
from clcalib.report.formats import MISSING, duration, new_table, short


def estimate_table(estimate: Estimate) -> Table:
    """The time of each unit and of all else."""
    table = new_table("Estimate")
    table.add_column("unit or stage", overflow="fold", style="bold")
    for heading in ("steps", "time", "share"):
        table.add_column(heading, justify="right", no_wrap=True)
    total = max(estimate.seconds, 1e-9)
    for unit in estimate.units:
        share = f"{unit.seconds / total:.0%}"
        table.add_row(Text(unit.name), str(unit.steps or MISSING), duration(unit.seconds), share)
    table.add_section()
    for name, seconds in estimate.seconds_per_stage.items():
        if name not in ("reconstruction", "last phase"):
            table.add_row(Text(name), MISSING, duration(seconds), f"{seconds / total:.0%}")
    table.add_section()
    table.add_row("all", MISSING, duration(estimate.seconds), "")
    return table


def estimate_text(estimate: Estimate, rounds: int | None = None) -> Text:
    """Memory and disk, what stays in float, and that ``rounds`` such runs may follow each other."""
    operators = ", ".join(f"{name} ({count})" for name, count in estimate.float_operators.items())
    repeated = () if rounds is None else (f"time:   of one run; --max-drop takes up to {rounds + 2}",)
    lines = (
        *repeated,
        f"memory: {short(estimate.peak_memory_bytes)}B at the peak, {short(estimate.stored_bytes)}B of it stored "
        "activations",
        f"disk:   {short(estimate.disk_bytes)}B at most in the output folder, saved units included; "
        f"{short(estimate.spilled_bytes)}B in temporary files (--memory-budget)",
        f"float:  layers: {', '.join(estimate.float_layers) or 'none'}",
        f"        operators: {operators or 'none'}",
        "Nothing was written.",
    )
    return Text("\n".join(lines))
