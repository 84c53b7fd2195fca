"""The page that puts runs side by side."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

from markupsafe import Markup

from clcalib.errors import CheckpointError
from clcalib.files import write_atomically
from clcalib.report.charts.plot import SERIES
from clcalib.report.charts.rows import Mark, Panel, row_chart
from clcalib.report.charts.scale import is_spread
from clcalib.report.comparing import ComparedRun, Comparison, compare_runs
from clcalib.report.comparison_table import difference_text, notes
from clcalib.report.formats import MISSING, duration, percent
from clcalib.report.page.numbers import MINUS, number_text, size_text
from clcalib.report.page.render import data_block, encoded, rendered

MOST_UNITS = 120


@dataclasses.dataclass(frozen=True)
class UnitComparison:
    """Units of all runs that have the same: the chart, headings, and rows of (name, texts)."""

    chart: Markup
    headings: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def write_comparison(folders: Sequence[str | Path], out: str | Path) -> Path:
    """Write the page that puts runs side by side; return its path.

    Args:
        folders: of at least two runs; the others are compared with the first.
        out: the file.

    Raises:
        ArgumentError, CheckpointError, NumericalError: see ``compare_runs``.
        StorageError: the page could not be written.
    """
    path = Path(out)
    write_atomically(path, encoded(comparison_page(compare_runs(folders))))
    return path


def comparison_page(comparison: Comparison) -> str:
    """The page about several runs.

    Raises:
        CheckpointError: the files hold numbers that nothing can be drawn of.
    """
    try:
        return rendered(
            "compare.html",
            title=f"{len(comparison.runs)} runs side by side",
            comparison=comparison,
            series=[_series(at) for at in range(len(comparison.runs))],
            rows=[_row(run) for run in comparison.runs],
            chart=_chart(comparison.runs),
            units=_units(comparison),
            notes=notes(comparison),
            data=data_block("comparison", comparison.to_json()),
        )
    except (ArithmeticError, ValueError) as error:
        names = ", ".join(run.name for run in comparison.runs)
        raise CheckpointError(f"{names}: their files hold numbers that no run has ({error})") from error


def _row(run: ComparedRun) -> tuple[str, ...]:
    """The cells behind a run's name."""
    paired = run.paired
    return (
        run.widths, run.method, percent(run.value),
        MISSING if run.drop is None else f"{run.drop:.2f}".replace("-", MINUS),
        difference_text(run).replace("-", MINUS) if paired is not None else MISSING,
        MISSING if paired is None else f"{paired.p_value:.2g}",
        size_text(run.weights_bytes), duration(run.seconds), percent(run.floating),
        MISSING if paired is None else f"{paired.lost} / {paired.won}",
        percent(run.agreement), percent(run.deployed), size_text(run.file_bytes),
    )  # fmt: skip


def _chart(runs: Sequence[ComparedRun]) -> Markup | None:
    if all(run.value is None for run in runs):
        return None
    values = [
        [] if run.value is None else [Mark(100 * run.value, _series(at), "dot", f"{100 * run.value:.2f} %")]
        for at, run in enumerate(runs)
    ]
    panels = [Panel(f"{runs[0].measure} [%]", values, most=100.0)]
    differences = [
        [] if run.paired is None else [
            Mark(run.paired.low, _series(at), "tick", f"{run.paired.low:+.2f}"),
            Mark(run.paired.difference, _series(at), "dot", f"{run.paired.difference:+.2f} points"),
            Mark(run.paired.high, _series(at), "tick", f"{run.paired.high:+.2f}"),
        ]
        for at, run in enumerate(runs)
    ]  # fmt: skip
    if any(differences):
        differences[0] = [Mark(0.0, _series(0), "dot", "the first run")]
        panels.append(Panel("points to the first, 95 %", differences, is_joined=True))
    sizes = [
        [] if run.weights_bytes is None else [Mark(run.weights_bytes / 1000, _series(at), "bar")]
        for at, run in enumerate(runs)
    ]
    if any(sizes):
        panels.append(Panel("weights [kB]", sizes))
    panels.append(Panel("seconds", [[Mark(run.seconds, _series(at), "bar")] for at, run in enumerate(runs)]))
    return row_chart(
        [run.name for run in runs],
        panels,
        title="Runs side by side",
        description="; ".join(f"{run.name} {percent(run.value)} per cent" for run in runs),
        width=130 + 190 * len(panels),
    )


def _units(comparison: Comparison) -> UnitComparison | None:
    """SQNR of the units of the runs that have the same units as the first; None where there is none to see."""
    first = [unit.name for unit in comparison.folders[0].record.units][:MOST_UNITS]
    known = [
        (at, {unit.name: unit for unit in folder.record.units})
        for at, folder in enumerate(comparison.folders)
        if [unit.name for unit in folder.record.units][:MOST_UNITS] == first
    ]
    if not first or len(known) < 2:
        return None
    ratios = [{name: units[name].sqnr_db.calibration for name in first} for _, units in known]
    errors = [{name: units[name].reconstruction_error.calibration.after for name in first} for _, units in known]
    series = [(at, comparison.runs[at].name) for at, _ in known]

    def marks(columns: Sequence[Mapping[str, float | None]]) -> list[list[Mark]]:
        return [
            [
                Mark(value, _series(at), "dot" if at else "ring", f"{run} {number_text(value)}")
                # The first run comes last, around the others: equal ones would hide it.
                for (at, run), column in reversed(list(zip(series, columns, strict=True)))
                if (value := column[name]) is not None
            ]
            for name in first
        ]

    is_log = is_spread([value for column in errors for value in column.values()])
    panels = [
        Panel("SQNR [dB]", marks(ratios), is_joined=True),
        Panel("error after (log)" if is_log else "error after", marks(errors), is_log=is_log, is_joined=True),
    ]
    chart = row_chart(
        first, panels, title="Units of the runs", description="signal to noise and error of each unit in each run",
        width=760,
    )  # fmt: skip
    headings = ("unit", *(f"SQNR [dB], {name}" for _, name in series))
    rows = tuple((name, *(number_text(column[name]) for column in ratios)) for name in first)
    return UnitComparison(chart, headings, rows)


def _series(at: int) -> str:
    return f"s{at % SERIES + 1}"
