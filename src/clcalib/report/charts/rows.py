"""Charts with a row for each thing that has a name: bars, and dots before and after, in panels side by side."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

from markupsafe import Markup

from clcalib.report.charts.scale import Scale, tick_texts
from clcalib.report.charts.svg import Content, element, figure, group, line, short_name, text, titled

_ROW, _TOP, _BOTTOM, _GAP = 20.0, 34.0, 22.0, 26.0
MIDDLE = 460.0  # pixels of a chart with one panel
_LETTER = 6.9  # pixels of a letter of a row's name, about


@dataclasses.dataclass(frozen=True)
class Mark:
    """One value in a row.

    Attributes:
        value: where it is.
        series: the class of its colour.
        shape: "dot", "ring", "tick", or "bar" from zero.
        note: what it is called when it is pointed at.
    """

    value: float
    series: str
    shape: str = "dot"
    note: str = ""


@dataclasses.dataclass(frozen=True)
class Panel:
    """One quantity of all rows.

    Attributes:
        heading: what it is.
        rows: the marks of each row.
        is_log: whether equal ratios are equal distances.
        has_zero: whether the axis begins at zero; it does wherever there are bars.
        is_joined: whether the marks of a row are joined by a line.
        most: more than any value can be is not on the axis.
    """

    heading: str
    rows: Sequence[Sequence[Mark]]
    is_log: bool = False
    has_zero: bool = False
    is_joined: bool = False
    most: float = math.inf


def row_chart(
    names: Sequence[str],
    panels: Sequence[Panel],
    *,
    title: str,
    description: str,
    width: float = MIDDLE,
    name_width: float = 130.0,
) -> Markup:
    """Draw panels side by side that share their rows.

    Args:
        names: of the rows, from top to bottom.
        panels: at least one.
        title: of the whole.
        description: what a reader would see.
        width: in pixels.
        name_width: what of it the names take.
    """
    height = _TOP + _ROW * len(names) + _BOTTOM
    labels = [
        group(titled(name), text(0, _middle(at) + 4, short_name(name, int(name_width / _LETTER)), "row"))
        for at, name in enumerate(names)
    ]
    stripes = [
        element("rect", x=0.0, y=_TOP + _ROW * at, width=width, height=_ROW, class_="stripe")
        for at in range(1, len(names), 2)
    ]
    own = (width - name_width - _GAP * (len(panels) - 1)) / len(panels)
    drawn = [
        _panel(panel, name_width + at * (own + _GAP) + 8, name_width + at * (own + _GAP) + own - 14, height - _BOTTOM)
        for at, panel in enumerate(panels)
    ]
    return figure(
        width, height, *stripes, *labels, *drawn, title=title, description=description,
        class_="wide" if width > MIDDLE else "middle",
    )  # fmt: skip


def _panel(panel: Panel, left: float, right: float, bottom: float) -> Markup:
    values = [mark.value for row in panel.rows for mark in row]
    has_bars = any(mark.shape == "bar" for row in panel.rows for mark in row)
    kind = {"is_log": panel.is_log and not has_bars, "has_zero": panel.has_zero or has_bars}
    scale = Scale.around(values, left, right, most=panel.most, **kind)
    places, ticks = scale.ticks(max(2, int((right - left) / 55))), list[Content]()
    for place, told in zip(places, tick_texts(places), strict=True):
        ticks += [line(scale(place), _TOP, scale(place), bottom, "grid")]
        ticks += [text(scale(place), bottom + 14, told, anchor="middle")]
    rows = [_row(row, scale, _middle(at), is_joined=panel.is_joined) for at, row in enumerate(panel.rows)]
    return group(text(left, 20, panel.heading, "name"), *ticks, *rows)


def _row(row: Sequence[Mark], scale: Scale, y: float, *, is_joined: bool) -> Markup:
    places = [scale(mark.value) for mark in row]
    pair = [line(min(places), y, max(places), y, "pair")] if is_joined and len(places) > 1 else []
    return group(*pair, *(_mark(mark, scale, y) for mark in row))


def _mark(mark: Mark, scale: Scale, y: float) -> Markup:
    x, note = scale(mark.value), [titled(mark.note)] if mark.note else []
    if mark.shape == "bar":
        zero = scale(0.0)
        return element(
            "rect", *note, x=min(zero, x), y=y - 5, width=max(0.5, abs(x - zero)), height=10.0,
            class_=f"bar {mark.series}",
        )  # fmt: skip
    if mark.shape == "tick":
        return element("rect", *note, x=x - 1.5, y=y - 7, width=3.0, height=14.0, class_=f"bar {mark.series}")
    return element("circle", *note, cx=x, cy=y, r=4.5, class_=f"{mark.shape} {mark.series}")


def _middle(at: int) -> float:
    return _TOP + _ROW * (at + 0.5)
