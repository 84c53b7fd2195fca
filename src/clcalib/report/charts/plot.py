"""Charts with two axes: lines, histograms with a grid drawn in, and points of two networks."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence

from markupsafe import Markup

from clcalib.report.charts.scale import Scale, is_spread, tick_texts
from clcalib.report.charts.svg import Content, element, figure, group, joined, line, short_name, text, titled
from clcalib.report.evidence import FeatureMap, HistogramRecord

SMALL = (320.0, 176.0)
_LEFT, _RIGHT, _TOP, _BOTTOM = 46.0, 10.0, 24.0, 30.0
_MOST_GRID_LINES = 33
SERIES = 10  # colours that there are; further series begin anew


@dataclasses.dataclass(frozen=True)
class Frame:
    """The area of a chart with its axes."""

    width: float
    height: float
    x: Scale
    y: Scale

    @classmethod
    def of(cls, size: tuple[float, float], x: Scale, y: Scale) -> Frame:
        """Scales that know nothing of places get those of the area."""
        width, height = size
        return cls(
            width, height,
            dataclasses.replace(x, start=_LEFT, end=width - _RIGHT),
            dataclasses.replace(y, start=height - _BOTTOM, end=_TOP),
        )  # fmt: skip

    def drawn(self, name: str, x_label: str) -> Markup:
        """Axes, ticks and the name above."""
        left, right, bottom = self.x.start, self.x.end, self.y.start
        across, upwards = self.x.ticks(5), self.y.ticks(4)
        lines = [line(left, self.y(tick), right, self.y(tick), "grid") for tick in upwards]
        numbers = [
            text(left - 5, self.y(tick) + 4, told, anchor="end")
            for tick, told in zip(upwards, tick_texts(upwards), strict=True)
        ]
        below = [
            text(self.x(tick), bottom + 14, told, anchor="middle")
            for tick, told in zip(across, tick_texts(across), strict=True)
        ]
        label = text(right, self.height - 3, x_label, "axis", "end")
        heading = text(4, 14, short_name(name, int(self.width / 7)), "name") if name else ""
        return joined(heading, *lines, line(left, bottom, right, bottom, "base"), *numbers, *below, label)


def line_chart(
    name: str, steps: Sequence[int], losses: Mapping[str, Sequence[float | None]], order: Sequence[str]
) -> Markup:
    """Losses over steps; logarithmic where they are far apart.

    Args:
        name: what they are of.
        steps: of each value.
        losses: term -> its values; None where there is none.
        order: of all terms of the page, which fixes their colours.
    """
    values = [value for column in losses.values() for value in column if value is not None]
    frame = Frame.of(
        SMALL, Scale(0, max(1, *steps, 1), 0, 1), Scale.around(values, 0, 1, is_log=is_spread(values), has_zero=True)
    )
    curves = []
    for term, column in losses.items():
        series = order.index(term) % SERIES + 1
        points = [(step, value) for step, value in zip(steps, column, strict=True) if value is not None]
        shown = [(step, value) for step, value in points if value > 0 or not frame.y.is_log]
        if shown:
            curves.append(
                element("path", titled(f"{term}: {shown[0][1]:.4g} to {shown[-1][1]:.4g}"),
                        d=_path([(frame.x(step), frame.y(value)) for step, value in shown]), class_=f"line s{series}")
            )  # fmt: skip
    told = "; ".join(f"{term} from {_first(column)} to {_first(column[::-1])}" for term, column in losses.items())
    return figure(
        *SMALL, frame.drawn(name, "step"), *curves,
        title=f"Losses of {name}", description=told or "no losses", class_="small",
    )  # fmt: skip


def histogram(name: str, record: HistogramRecord, title: str) -> Markup:
    """Counts in bins on a logarithmic axis, with the levels of the grid as lines.

    Args:
        name: written above it.
        record: what was counted.
        title: what it is called where it stands alone.
    """
    counts = record.counts
    frame = Frame.of(SMALL, Scale(record.low, record.high, 0, 1), Scale(0.7, max(10, *counts) * 1.3, 0, 1, is_log=True))
    width = (frame.x.end - frame.x.start) / len(counts)
    bottom = frame.y.start
    outline = [f"M{frame.x.start:.1f} {bottom:.1f}"]
    for at, count in enumerate(counts):
        top = frame.y(count) if count else bottom
        outline.append(f"V{top:.1f}H{frame.x.start + (at + 1) * width:.1f}")
    every = max(1, math.ceil((len(record.levels) - 1) / (_MOST_GRID_LINES - 1)))
    levels = sorted({*record.levels[::every], record.levels[-1]})
    marks = [line(frame.x(level), bottom, frame.x(level), _TOP, "level") for level in levels]
    ends = [line(frame.x(level), bottom + 4, frame.x(level), _TOP, "level end") for level in
            (record.levels[0], record.levels[-1])]  # fmt: skip
    said = f"{len(record.levels)} levels" if every == 1 else f"{len(record.levels)} levels, every {every}th drawn"
    clipped = f", {100 * record.clipped:.2g} % outside of the grid" if record.clipped else ""
    label = "code" if record.axis == "codes" else "value"
    return figure(
        *SMALL, element("path", d=f"{''.join(outline)}V{bottom:.1f}Z", class_="area"), *marks, *ends,
        frame.drawn(name, label),
        title=title, description=f"{record.bits} bits, {said}{clipped}; counts on a logarithmic axis", class_="small",
    )  # fmt: skip


def scatter(points: FeatureMap, names: Mapping[int, str]) -> Markup:
    """The float network's points as rings, the quantized one's as dots, joined image by image; colours are classes."""
    both = (*points.floating, *points.quantized)
    size = 640.0, 480.0
    columns, room = list(zip(*both, strict=True)), (size[0] - _LEFT - _RIGHT, size[1] - _TOP - _BOTTOM)
    step = max((max(own) - min(own)) / pixels for own, pixels in zip(columns, room, strict=True))  # the same on both
    scales = [Scale.tight(own, step * pixels) for own, pixels in zip(columns, room, strict=True)]
    frame = Frame.of(size, *scales)
    order = sorted(set(points.classes or ()))
    marks: list[Content] = []
    for at, (first, second) in enumerate(zip(points.floating, points.quantized, strict=True)):
        number = None if points.classes is None else points.classes[at]
        series = f"s{order.index(number) + 1}" if number is not None and len(order) <= SERIES else None
        x, y, own_x, own_y = frame.x(first[0]), frame.y(first[1]), frame.x(second[0]), frame.y(second[1])
        marks.append(group(
            titled(f"image {at}" + ("" if number is None else f", {names.get(number, f'class {number}')}")),
            line(x, y, own_x, own_y, "pair"),
            element("circle", cx=x, cy=y, r=3.2, class_="ring" if series else "ring s-float"),
            element("circle", cx=own_x, cy=own_y, r=2.4, class_="dot" if series else "dot s-own"),
            class_=series,
        ))  # fmt: skip
    shares = [f"{100 * share:.0f} %" for share in points.explained]
    return figure(
        *size, frame.drawn("", f"first component, {shares[0]} of the variance; upwards the second, {shares[1]}"),
        *marks,
        title="Features of the float and of the quantized network",
        description=f"{len(points.floating)} images, each a ring (float) joined to a dot (quantized); short lines mean "
        "that quantization hardly moved them",
        class_="large",
    )  # fmt: skip


def _path(points: Sequence[tuple[float, float]]) -> str:
    return "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in points)


def _first(column: Sequence[float | None]) -> str:
    return next((f"{value:.4g}" for value in column if value is not None), "nothing")
