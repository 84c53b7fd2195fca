"""Several runs side by side, for the terminal."""

from __future__ import annotations

from rich.table import Table
from rich.text import Text

from clcalib.report.comparing import ComparedRun, Comparison
from clcalib.report.formats import MISSING, duration, new_table, percent, short


def settings_table(comparison: Comparison) -> Table:
    """What differs between the runs."""
    table = new_table("Settings that differ")
    table.add_column("setting", style="bold", overflow="fold")
    for run in comparison.runs:
        table.add_column(Text(run.name), overflow="fold")
    for row in comparison.differing:
        table.add_row(Text(row.name), *(Text(value) for value in row.values))
    return table


def comparison_table(comparison: Comparison) -> Table:
    """A line for each run; differences are those to the first, on the same images."""
    first = comparison.runs[0]
    table = new_table(f"Runs beside {first.name}: {first.measure}")
    table.add_column("run", style="bold", overflow="fold")
    table.add_column("widths")
    table.add_column("method", overflow="fold")
    for heading in ("[%]", "points lost", "to the first", "p", "size", "time"):
        table.add_column(Text(heading), justify="right", no_wrap=True)
    for run in comparison.runs:
        paired = run.paired
        table.add_row(
            Text(run.name), run.widths, Text(run.method), percent(run.value),
            MISSING if run.drop is None else f"{run.drop:.2f}", difference_text(run),
            MISSING if paired is None else f"{paired.p_value:.2g}",
            MISSING if run.weights_bytes is None else f"{short(run.weights_bytes)}B", duration(run.seconds),
        )  # fmt: skip
    return table


def difference_text(run: ComparedRun) -> str:
    """The paired difference with its interval, or a dash.

    Example:
        >>> from clcalib.report.pairing import of_counts
        >>> from types import SimpleNamespace
        >>> difference_text(SimpleNamespace(paired=of_counts(12, 3, 1000)))
        '-0.90 (-1.70 to -0.20)'
    """
    paired = run.paired
    return MISSING if paired is None else f"{paired.difference:+.2f} ({paired.low:+.2f} to {paired.high:+.2f})"


def notes(comparison: Comparison) -> list[str]:
    """What is to be said of runs that cannot be compared with the first, or not image by image."""
    found = [f"{run.name} is not comparable: {', '.join(run.doubts)}" for run in comparison.runs if run.doubts]
    return found + [
        f"{run.name} is not paired: {run.unpaired}" for run in comparison.runs if run.unpaired and not run.doubts
    ]
