"""Layer by layer: histograms with their grids; and the widths, where a run had to find some."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from markupsafe import Markup

from clcalib.report.charts.plot import histogram
from clcalib.report.charts.rows import Mark, Panel, row_chart
from clcalib.report.charts.scale import is_spread
from clcalib.report.evidence import Evidence, LayerEvidence
from clcalib.report.page.numbers import number_text, share_text
from clcalib.report.page.sources import RunFolder
from clcalib.report.record import BudgetRecord, TargetRecord

MOST_LAYERS = 150  # more are in report.json
MOST_OPEN = 6
MOST_CHARTED = 150


@dataclasses.dataclass(frozen=True)
class LayerRow:
    """The histograms of one layer, and its shares as texts."""

    name: str
    weight: Markup | None
    activation: Markup | None
    flipped: str
    weight_clipped: str
    activation_clipped: str


@dataclasses.dataclass(frozen=True)
class LayerView:
    """The layers that are drawn, of how many, and on how many images activations were seen."""

    first: tuple[LayerRow, ...]
    others: tuple[LayerRow, ...]
    count: int
    images: int


@dataclasses.dataclass(frozen=True)
class WidthView:
    """What was asked for, the chart, and a table: headings and rows of texts, the first of which is a name."""

    sentence: str
    chart: Markup | None
    headings: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def layer_view(evidence: Evidence | None) -> LayerView | None:
    """The section about histograms, or None where there are none."""
    layers = [] if evidence is None else [each for each in evidence.layers if each.weight or each.activation]
    if evidence is None or not layers:
        return None
    rows = [_row(layer) for layer in layers[:MOST_LAYERS]]
    return LayerView(tuple(rows[:MOST_OPEN]), tuple(rows[MOST_OPEN:]), len(layers), evidence.images)


def width_views(run: RunFolder) -> tuple[WidthView, ...]:
    """The sections about widths that were chosen: within a budget, or raised for an accuracy."""
    budget, target = run.record.budget, run.record.target
    found = [] if budget is None else [_budget_view(budget)]
    return (*found, *([] if target is None else [_target_view(target)]))


def _row(layer: LayerEvidence) -> LayerRow:
    weight, activation = layer.weight, layer.activation
    return LayerRow(
        name=layer.name,
        weight=None if weight is None else histogram("weight", weight, f"Weight of {layer.name}"),
        activation=None if activation is None else histogram("input", activation, f"Input of {layer.name}"),
        flipped=share_text(layer.flipped),
        weight_clipped="" if weight is None else f"{100 * weight.clipped:.2g}",
        activation_clipped="" if activation is None else f"{100 * activation.clipped:.2g}",
    )


def _budget_view(budget: BudgetRecord) -> WidthView:
    asked = [] if budget.size_budget is None else [f"{budget.size_budget:,} bytes of weights"]
    asked += [] if budget.cost_budget is None else [f"{budget.cost_budget:.3g} of the bit operations of W8A8"]
    what = "divergence in nat" if budget.measure == "divergence" else "share of images whose class changes"
    best = "no choice is better" if budget.is_optimal else f"at most {100 * budget.gap:.2g} % from the best choice"
    units = budget.units[:MOST_CHARTED]
    marks: list[Sequence[Mark]] = [
        [
            Mark(value, "s-own" if widths == unit.widths else "s-held", "dot" if widths == unit.widths else "ring",
                 f"{widths}: {number_text(value)}")
            for widths, value in unit.sensitivities.items()
        ]
        for unit in units
    ]  # fmt: skip
    bits: list[Sequence[Mark]] = [
        [Mark(float(_weight_bits(unit.widths)), "s-own", "bar", unit.widths)] if unit.widths else [] for unit in units
    ]
    is_log = is_spread([mark.value for row in marks for mark in row])
    chart = row_chart(
        [unit.name for unit in units],
        [
            Panel("bits of weights", bits),
            Panel(f"{what}{' (log)' if is_log else ''}", marks, is_log=is_log, is_joined=True, has_zero=True),
        ],
        title="Chosen widths and what each candidate would do",
        description="dots are the chosen widths, rings the other candidates, each with this unit alone quantized",
        width=760,
        name_width=150,
    )
    candidates = list(dict.fromkeys(widths for unit in budget.units for widths in unit.sensitivities))
    rows = tuple(
        (unit.name, unit.widths or "settled", f"{unit.bytes:,}",
         *(number_text(unit.sensitivities.get(widths)) for widths in candidates))
        for unit in budget.units
    )  # fmt: skip
    return WidthView(
        f"At most {' and '.join(asked) or 'nothing'} were asked for. The result has {budget.size:,} bytes and "
        f"{budget.cost:.3g} of the bit operations, {budget.mean_weight_bits:.2f} bits a weight in the mean; {best}. "
        f"Sensitivities are the {what} with one {budget.per} quantized, on {budget.images:,} images.",
        chart if units else None,
        (budget.per, "widths", "bytes", *candidates),
        rows,
    )


def _target_view(target: TargetRecord) -> WidthView:
    measure = "top-1" if target.measure == "top1" else "agreement"
    marks: list[Sequence[Mark]] = [[Mark(row.drop, "s-own", "bar", f"{row.drop:.2f} points")] for row in target.rounds]
    bits: list[Sequence[Mark]] = [[Mark(row.mean_weight_bits, "s3", "bar")] for row in target.rounds]
    chart = row_chart(
        [f"round {number}" for number in range(1, len(target.rounds) + 1)],
        [Panel(f"points of {measure} lost", marks), Panel("mean bits of weights", bits)],
        title="Rounds on the way to an accuracy",
        description=f"{len(target.rounds)} rounds; at most {target.max_drop:g} points were to be lost",
    )
    rows = tuple(
        (f"round {number}", f"{row.drop:.2f}", f"{row.mean_weight_bits:.2f}", ", ".join(row.raised) or "none")
        for number, row in enumerate(target.rounds, 1)
    )
    met = "The result keeps that" if target.is_met else "No round came to it"
    return WidthView(
        f"At most {target.max_drop:g} points of {measure} were to be lost on {target.images:,} images that chose the "
        f"widths and took no part in the figures above. {met}.",
        chart if target.rounds else None,
        ("round", f"points of {measure} lost", "mean bits of weights", "raised for the next"),
        rows,
    )


def _weight_bits(widths: str) -> int:
    """The first width of a pair such as W3A4."""
    digits = widths[1:].partition("A")[0]
    return int(digits) if digits.isdecimal() and len(digits) < 3 else 0
