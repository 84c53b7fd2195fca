"""A page of SVG: shapes and words at places in pixels, the same bytes each time."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

INK, GREY, FAINT = "#333333", "#8A8A8A", "#E3E3E3"
BLUE, ORANGE, GREEN, PURPLE = "#0072B2", "#D55E00", "#009E73", "#7A5195"  # told apart by the colour-blind too
FONT = "DejaVu Sans, Helvetica, Arial, sans-serif"


class Page:
    """Collects shapes; ``text()`` is the file."""

    def __init__(self, width: float, height: float, title: str) -> None:
        self.width, self.height, self.title = width, height, title
        self.parts: list[str] = []

    def rectangle(
        self, x: float, y: float, width: float, height: float, fill: str, stroke: str = "none", radius: float = 0.0
    ) -> None:
        shape = f'x="{n(x)}" y="{n(y)}" width="{n(width)}" height="{n(height)}" rx="{n(radius)}"'
        self.parts.append(f'<rect {shape} fill="{fill}" stroke="{stroke}"/>')

    def line(self, points: Sequence[tuple[float, float]], colour: str, width: float = 1.5, dash: str = "") -> None:
        places = " ".join(f"{n(x)},{n(y)}" for x, y in points)
        dashes = f' stroke-dasharray="{dash}"' if dash else ""
        self.parts.append(
            f'<polyline points="{places}" fill="none" stroke="{colour}" stroke-width="{n(width)}"{dashes}/>'
        )

    def arrow(self, start: tuple[float, float], end: tuple[float, float], colour: str = INK) -> None:
        """A line that is level or upright, with a head."""
        (x, y), size = end, 5.0
        self.line((start, end), colour)
        if start[1] == y:
            back = x - size if x > start[0] else x + size
            head = ((x, y), (back, y - size * 0.6), (back, y + size * 0.6))
        else:
            back = y - size if y > start[1] else y + size
            head = ((x, y), (x - size * 0.6, back), (x + size * 0.6, back))
        places = " ".join(f"{n(a)},{n(b)}" for a, b in head)
        self.parts.append(f'<polygon points="{places}" fill="{colour}"/>')

    def circle(self, x: float, y: float, radius: float, fill: str) -> None:
        self.parts.append(f'<circle cx="{n(x)}" cy="{n(y)}" r="{n(radius)}" fill="{fill}"/>')

    def words(
        self,
        x: float,
        y: float,
        text: str,
        colour: str = INK,
        size: float = 12.0,
        anchor: str = "start",
        bold: bool = False,
    ) -> None:
        weight = ' font-weight="bold"' if bold else ""
        place = f'x="{n(x)}" y="{n(y)}" font-size="{n(size)}" text-anchor="{anchor}"{weight}'
        self.parts.append(f'<text {place} fill="{colour}">{escape(text)}</text>')

    def text(self) -> str:
        box = f'viewBox="0 0 {n(self.width)} {n(self.height)}" width="{n(self.width)}" height="{n(self.height)}"'
        lines = [
            f'<svg xmlns="http://www.w3.org/2000/svg" {box} font-family="{FONT}">',
            f"<title>{escape(self.title)}</title>",
            f'<rect width="{n(self.width)}" height="{n(self.height)}" fill="#ffffff"/>',
            *self.parts,
            "</svg>",
        ]
        return "\n".join(lines) + "\n"


class Panel:
    """Axes: a field of a page with numbers on both sides."""

    def __init__(
        self,
        page: Page,
        box: tuple[float, float, float, float],  # left, top, width, height
        x: tuple[float, float],
        y: tuple[float, float],
    ) -> None:
        self.page, self.box, self.x_range, self.y_range = page, box, x, y

    def at(self, x: float, y: float) -> tuple[float, float]:
        left, top, width, height = self.box
        return (
            left + width * (x - self.x_range[0]) / (self.x_range[1] - self.x_range[0]),
            top + height * (1 - (y - self.y_range[0]) / (self.y_range[1] - self.y_range[0])),
        )

    def frame(self, title: str, x_label: str, y_label: str) -> None:
        left, top, width, height = self.box
        self.page.line(((left, top), (left, top + height), (left + width, top + height)), GREY, 1)
        self.page.words(left, top - 12, title, size=13, bold=True)
        self.page.words(left + width / 2, top + height + 34, x_label, GREY, 11, "middle")
        self.page.words(left + 6, top + 4, y_label, GREY, 11)

    def x_ticks(self, values: Sequence[float], labels: Sequence[str]) -> None:
        for value, label in zip(values, labels, strict=True):
            x, y = self.at(value, self.y_range[0])
            self.page.line(((x, y), (x, y + 4)), GREY, 1)
            self.page.words(x, y + 17, label, GREY, 11, "middle")

    def y_ticks(self, values: Sequence[float], labels: Sequence[str]) -> None:
        for value, label in zip(values, labels, strict=True):
            x, y = self.at(self.x_range[0], value)
            self.page.line(((x, y), (x + self.box[2], y)), FAINT, 1)
            self.page.words(x - 6, y + 4, label, GREY, 11, "end")

    def curve(self, points: Sequence[tuple[float, float]], colour: str, width: float = 2.0, dash: str = "") -> None:
        self.page.line([self.at(x, y) for x, y in points], colour, width, dash)


def n(value: float) -> str:
    """A number with at most one decimal."""
    text = f"{value:.1f}"
    return text[:-2] if text.endswith(".0") else text
