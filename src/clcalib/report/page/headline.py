"""The first lines of a page: how good float, nearest rounding, the result and the deployed file are, size and time."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from markupsafe import Markup

from clcalib.report.charts.rows import Mark, Panel, row_chart
from clcalib.report.formats import duration, percent
from clcalib.report.page.numbers import points_text, size_text
from clcalib.report.page.sources import RunFolder
from clcalib.report.record import RunRecord
from clcalib.report.tables import bits_name, method_name


@dataclasses.dataclass(frozen=True)
class Tile:
    """One figure: what of, how much, and beside what."""

    label: str
    value: str
    note: str
    series: str = ""


@dataclasses.dataclass(frozen=True)
class Headline:
    """The measure, its values, what it costs, and what it comes to in a sentence."""

    measure: str
    tiles: tuple[Tile, ...]
    facts: tuple[Tile, ...]
    verdict: str
    chart: Markup | None


def headline(run: RunFolder) -> Headline:
    """Put the headline of a run together."""
    measure, values = measured(run.record)
    names = [name for name, _, _ in values]
    chart = None
    if len(values) > 1:
        chart = row_chart(
            names,
            [Panel(f"{measure} [%]", [[Mark(100 * value, series)] for _, value, series in values], most=100.0)],
            title=measure,
            description=", ".join(f"{name} {percent(value)} per cent" for name, value, _ in values),
        )
    return Headline(measure, tuple(_tiles(run.record, values)), tuple(_facts(run)), _verdict(run.record), chart)


def measured(record: RunRecord) -> tuple[str, list[tuple[str, float, str]]]:
    """What was measured, and (name, value, series) of everything that it was measured of."""
    method = method_name(record)
    if record.float_top1 is not None:
        name = "Top-1 accuracy"
        rows = [
            ("float", record.float_top1, "s-float"),
            ("nearest rounding", record.nearest_top1, "s-nearest"),
            (method, record.quantized_top1, "s-own"),
        ]
    elif record.agreement is not None:
        name = "Agreement with the float network"
        rows = [("nearest rounding", record.nearest_agreement, "s-nearest"), (method, record.agreement, "s-own")]
    elif record.detection is not None:
        name, found = "Detections of the float network that are found too", record.detection
        rows = [("nearest rounding", found.nearest_matched, "s-nearest"), (method, found.matched, "s-own")]
    else:
        return "Accuracy", []
    if record.recipe == "nearest":
        rows = [row for row in rows if row[0] != "nearest rounding"]
    return name, [(label, value, series) for label, value, series in rows if value is not None]


def _tiles(record: RunRecord, values: Sequence[tuple[str, float, str]]) -> list[Tile]:
    found = []
    is_first_float = bool(values) and values[0][0] == "float"
    for label, value, series in values:
        note = f"{points_text(values[0][1], value)} points" if is_first_float and label != "float" else ""
        found.append(Tile(label, f"{percent(value)} %", note or f"{record.evaluation_images:,} images", series))
    deployed = record.deployment
    if deployed is None:
        return found
    if deployed.runtime is None or (deployed.top1_runtime is None and deployed.agreement is None):
        found.append(Tile(f"deployed, {deployed.target}", "not measured", deployed.file, "s-deployed"))
    elif deployed.top1_runtime is not None and deployed.top1_simulated is not None:
        note = f"on {deployed.images:,} images; simulated there {percent(deployed.top1_simulated)} %"
        found.append(Tile(f"deployed, {deployed.target}", f"{percent(deployed.top1_runtime)} %", note, "s-deployed"))
    else:
        note = f"same class as the simulation, {deployed.images:,} images"
        found.append(Tile(f"deployed, {deployed.target}", f"{percent(deployed.agreement)} %", note, "s-deployed"))
    return found


def _facts(run: RunFolder) -> list[Tile]:
    record = run.record
    floats = None if run.evidence is None or not run.evidence.float_bytes else run.evidence.float_bytes
    found = [Tile("widths", bits_name(record), record.recipe.replace("+", " + "))]
    if run.weights_bytes is not None:
        found.append(Tile("weights", size_text(run.weights_bytes), _ratio(floats, run.weights_bytes)))
    if record.deployment is not None:
        found.append(
            Tile("deployed file", size_text(record.deployment.file_bytes), _ratio(floats, record.deployment.file_bytes))
        )
    note = f"{record.steps_per_unit:,} steps for each of {len(record.units)} units"
    found.append(Tile("time", duration(record.seconds), note if record.steps_per_unit else "nothing was optimised"))
    found.append(Tile("memory", size_text(record.peak_memory_bytes), f"at most, on {record.device}"))
    return found


def _ratio(floats: int | None, own: int) -> str:
    if floats is None or own <= 0:
        return ""
    times = f"{floats / own:.1f} times smaller" if floats >= own else f"{own / floats:.1f} times larger"
    return f"{times} than {size_text(floats)} in float32"


def _verdict(record: RunRecord) -> str:
    """What the run comes to."""
    method, bits = method_name(record), bits_name(record)
    if record.float_top1 is not None and record.quantized_top1 is not None:
        lost = 100 * (record.float_top1 - record.quantized_top1)
        kept = f"loses {lost:.2f} points of top-1" if lost > 0 else "loses no top-1 accuracy"
        text = f"With {bits}, {method} {kept}"
        if record.nearest_top1 is not None and record.recipe != "nearest":
            rounded = 100 * (record.float_top1 - record.nearest_top1)
            text += f"; nearest rounding at the same widths loses {max(0.0, rounded):.2f}"
        return text + "."
    if record.agreement is not None:
        return (
            f"With {bits}, {method} names the class of the float network for {percent(record.agreement)} % of images."
        )
    if record.detection is not None and record.detection.matched is not None:
        return f"With {bits}, {method} finds {percent(record.detection.matched)} % of the float network's detections."
    return (
        f"The network was quantized to {bits} with {method}; there were no evaluation images, so that its accuracy is "
        "not known. Give some with --evaluation."
    )
