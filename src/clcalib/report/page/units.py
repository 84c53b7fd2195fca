"""Unit by unit: errors, signal to noise, the bound on mutual information, widths, roundings, and losses."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Sequence

from markupsafe import Markup

from clcalib.report.charts.plot import SERIES, line_chart
from clcalib.report.charts.rows import Mark, Panel, row_chart
from clcalib.report.charts.scale import is_spread
from clcalib.report.evidence import LayerEvidence
from clcalib.report.formats import MISSING
from clcalib.report.page.numbers import number_text, share_text, widths_of
from clcalib.report.page.sources import RunFolder
from clcalib.report.record import BeforeAfter, OnImages, RunRecord, UnitRecord
from clcalib.report.trace import RunTrace, UnitCurves

MOST_CHARTED = 120
MOST_CURVES = 60
MOST_WORST = 5


@dataclasses.dataclass(frozen=True)
class UnitRow:
    """A unit's line: texts, in the order of the columns behind the name."""

    name: str
    kind: str
    kept: str
    cells: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class UnitView:
    """The table and the chart of the units.

    Attributes:
        left_out: of what there is no column, and why.
        put_back: units that went back to nearest rounding.
        worst: (name, value) of those with the least signal to noise, the worst first; empty where all are soon seen.
    """

    columns: tuple[str, ...]
    rows: tuple[UnitRow, ...]
    chart: Markup | None
    charted: int
    left_out: tuple[str, ...]
    put_back: tuple[str, ...]
    worst: tuple[tuple[str, str], ...]


@dataclasses.dataclass(frozen=True)
class CurveView:
    """The charts of losses; ``terms`` with the class of their colour; ``count`` is of all units that have some."""

    terms: tuple[tuple[str, str], ...]
    charts: tuple[Markup, ...]
    count: int


def unit_view(run: RunFolder) -> UnitView:
    """The section about units."""
    units, flips = run.record.units, flipped_by_unit(run)
    columns = {
        "widths": [widths_of(unit.layers, run.record) for unit in units],
        "flipped [%]": [share_text(flips.get(unit.name)) for unit in units],
        "error": [_change(unit.reconstruction_error.calibration) for unit in units],
        "held-out error": [_change(unit.reconstruction_error.held_out) for unit in units],
        "SQNR [dB]": [number_text(unit.sqnr_db.calibration) for unit in units],
        "held-out": [number_text(unit.sqnr_db.held_out) for unit in units],
        "MI bound [nat]": [_bound(unit, is_held_out=False) for unit in units],
        "MI held-out": [_bound(unit, is_held_out=True) for unit in units],
    }
    shown = {name: column for name, column in columns.items() if any(cell != MISSING for cell in column)}
    rows = [
        UnitRow(unit.name, unit.kind, unit.kept, tuple(column[at] for column in shown.values()))
        for at, unit in enumerate(units)
    ]
    charted = units[:MOST_CHARTED]
    return UnitView(
        columns=tuple(shown),
        rows=tuple(rows),
        chart=_chart(charted, run.record, flips) if charted else None,
        charted=len(charted),
        left_out=tuple(_left_out(shown)),
        put_back=tuple(unit.name for unit in units if unit.kept == "nearest" and run.record.steps_per_unit),
        worst=_worst(units),
    )


def _worst(units: Sequence[UnitRecord]) -> tuple[tuple[str, str], ...]:
    known = [(unit.sqnr_db.calibration, unit.name) for unit in units if unit.sqnr_db.calibration is not None]
    if len(known) <= 2 * MOST_WORST:
        return ()
    return tuple((name, number_text(value)) for value, name in sorted(known, key=lambda row: row[0])[:MOST_WORST])


def flipped_by_unit(run: RunFolder) -> dict[str, float]:
    """Unit -> the share of its weights that are not rounded to the nearest level."""
    layers = {} if run.evidence is None else {layer.name: layer for layer in run.evidence.layers}
    found = {}
    for unit in run.record.units:
        own = [layers[name] for name in unit.layers if name in layers and layers[name].flipped is not None]
        count = sum(layer.weights for layer in own)
        if count:
            found[unit.name] = sum(layer.weights * _flipped(layer) for layer in own) / count
    return found


def curve_view(trace: RunTrace | None) -> CurveView | None:
    """The section about losses, or None where there are none."""
    units = [] if trace is None else [*trace.units, *([trace.last_phase] if trace.last_phase else [])]
    shown = [unit for unit in units if unit.steps and unit.losses]
    if not shown:
        return None
    order = list(dict.fromkeys(term for unit in shown for term in unit.losses))
    drawn = shown if len(shown) <= MOST_CURVES else [*shown[: MOST_CURVES - 1], shown[-1]]
    return CurveView(
        terms=tuple((term, f"s{at % SERIES + 1}") for at, term in enumerate(order)),
        charts=tuple(_curves(unit, order) for unit in drawn),
        count=len(shown),
    )


def _curves(unit: UnitCurves, order: Sequence[str]) -> Markup:
    return line_chart(unit.name, unit.steps, unit.losses, order)


def _chart(units: Sequence[UnitRecord], record: RunRecord, flips: dict[str, float]) -> Markup:
    errors = [unit.reconstruction_error.calibration for unit in units]
    is_log = is_spread([value for pair in errors for value in (pair.before, pair.after)])
    panels = [
        Panel(
            "error (log)" if is_log else "error",
            [
                [Mark(pair.before, "s-nearest", "ring", f"before {number_text(pair.before)}"),
                 Mark(pair.after, "s-own", "dot", f"after {number_text(pair.after)}")]
                for pair in errors
            ],
            is_log=is_log, is_joined=True, has_zero=True,
        )
    ]  # fmt: skip
    if any(pair.before > 0 for pair in errors):
        panels.append(Panel("error left [%]", [_left(unit.reconstruction_error) for unit in units], is_joined=True))
    if any(unit.sqnr_db.calibration is not None for unit in units):
        panels.append(Panel("SQNR [dB]", [_dot(unit.sqnr_db.calibration, "s-own", "bar") for unit in units]))
    bounds = [unit.mutual_information_bound for unit in units]
    if any(bound is not None for bound in bounds):
        panels.append(Panel("MI bound [nat]", [
            [] if bound is None else
            [Mark(bound.calibration.after, "s-own", "dot", f"calibration {number_text(bound.calibration.after)}"),
             *([] if bound.held_out is None else
               [Mark(bound.held_out.after, "s-held", "ring", f"held-out {number_text(bound.held_out.after)}")])]
            for bound in bounds
        ], is_joined=True))  # fmt: skip
    if flips:
        rows = [_dot(None if unit.name not in flips else 100 * flips[unit.name], "s3", "bar") for unit in units]
        panels.append(Panel("flipped [%]", rows))
    panels.append(Panel("weight bits", [_bits(unit, record) for unit in units]))
    middle = statistics.median(pair.after / pair.before for pair in errors if pair.before > 0) if any(
        pair.before > 0 for pair in errors
    ) else 1.0  # fmt: skip
    return row_chart(
        [unit.name for unit in units],
        panels,
        title="Units before and after their optimisation",
        description=f"{len(units)} units in the order of execution; the error after is {middle:.2f} of that before in "
        "the median; all numbers are in the table",
        width=150 + 155 * len(panels),
        name_width=150,
    )


def _left(error: OnImages) -> list[Mark]:
    """What is left of the error of nearest rounding, on both image sets."""
    sets = (("calibration", error.calibration, "s-own", "dot"), ("held-out", error.held_out, "s-held", "ring"))
    return [
        Mark(100 * pair.after / pair.before, series, shape, f"{name} {100 * pair.after / pair.before:.1f} %")
        for name, pair, series, shape in sets
        if pair is not None and pair.before > 0
    ]


def _bits(unit: UnitRecord, record: RunRecord) -> list[Mark]:
    """The mean width of the weights of a unit's layers; those in float count 32."""
    widths = [row.weight_bits or 32 for row in record.policy if row.name in unit.layers]
    return _dot(sum(widths) / len(widths) if widths else None, "s7", "bar")


def _dot(value: float | None, series: str, shape: str) -> list[Mark]:
    return [] if value is None else [Mark(value, series, shape, number_text(value))]


def _left_out(shown: dict[str, list[str]]) -> list[str]:
    found = []
    if "held-out error" not in shown:
        found.append("Nothing is known on held-out images: give evaluation images (--evaluation).")
    if "MI bound [nat]" not in shown and "SQNR [dB]" not in shown:
        found.append("SQNR and the bound on mutual information were not measured (measured_images was 0).")
    if "flipped [%]" not in shown:
        found.append("How many roundings differ from the nearest is in report.json, which this folder lacks.")
    return found


def _flipped(layer: LayerEvidence) -> float:
    return layer.flipped or 0.0


def _bound(unit: UnitRecord, *, is_held_out: bool) -> str:
    bound = unit.mutual_information_bound
    return _change(None if bound is None else bound.held_out if is_held_out else bound.calibration)


def _change(pair: BeforeAfter | None) -> str:
    return MISSING if pair is None else f"{number_text(pair.before)} → {number_text(pair.after)}"
