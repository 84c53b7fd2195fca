"""What each worker of a run has in memory, where the units are with several workers."""

from __future__ import annotations

from rich.table import Table
from rich.text import Text

from clcalib.report.formats import new_table, short
from clcalib.team.memory import MemoryPlan, WorkerMemory


def memory_table(plan: MemoryPlan) -> Table:
    """A row for each worker: its units, and the bytes of everything that is large."""
    table = new_table("Memory plan, bytes")
    table.add_column("worker", justify="right", no_wrap=True)
    table.add_column("units", overflow="fold", style="bold")
    for heading in ("weights", "trained", "caches", "activation", "total"):
        table.add_column(heading, justify="right", no_wrap=True)
    for rank, row in enumerate(plan):
        sizes = (row.weights, row.trained, row.caches, row.activation, row.total)
        table.add_row(str(rank), Text(_units(row)), *(short(size) for size in sizes))
    return table


def _units(row: WorkerMemory) -> str:
    return row.names[0] if len(row.names) == 1 else f"{row.names[0]} to {row.names[-1]} ({len(row.names)})"
