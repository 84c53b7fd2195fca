"""Keys and queries of the contrastive term on real images, from ``scores.json`` (written by ``scores.py``)."""

from __future__ import annotations

import json
from pathlib import Path

from svg import FAINT, GREY, INK, ORANGE, Page

SCORES = Path(__file__).resolve().parent / "scores.json"
CELL = 15.0


def draw() -> str:
    data = json.loads(SCORES.read_text())
    page = Page(960, 420, "Queries and keys of the contrastive term")
    _matrix(page, 60, data["float"], data["classes"], "keys against keys: the float network")
    _matrix(page, 370, data["nearest"], data["classes"], "queries: nearest rounding, W2A2")
    _matrix(page, 680, data["calibrated"], data["classes"], "queries: after calibration, W2A2")
    page.words(
        60, 352, "Row i: image i, column j: the key of image j; two images of each class stand side by side.", GREY
    )
    page.words(
        60, 372, "Framed: the positive pair, image i with itself. All else in its row are negatives, the other", GREY
    )
    page.words(
        60,
        392,
        "image of its class too, which is a false one. Dark: cosine 1; white: the least of the three panels.",
        GREY,
    )
    return page.text()


def _matrix(page: Page, left: float, rows: list[list[float]], classes: list[str], title: str) -> None:
    top = 70.0
    data = json.loads(SCORES.read_text())
    least = min(min(min(row) for row in data[name]) for name in ("float", "nearest", "calibrated"))
    page.words(left, 40, title, INK, 13, bold=True)
    page.words(left, 58, "keys j", GREY, 11)
    for i, row in enumerate(rows):
        for j, cosine in enumerate(row):
            share = (cosine - least) / (1 - least)
            page.rectangle(left + j * CELL, top + i * CELL, CELL, CELL, shade(share), FAINT)
    for i in range(len(rows)):
        page.rectangle(left + i * CELL, top + i * CELL, CELL, CELL, "none", ORANGE, 2)
    for i in range(0, len(classes), 2):
        if left < 100:
            page.words(left - 5, top + (i + 1) * CELL + 4, classes[i], GREY, 9, "end")


def shade(share: float) -> str:
    """White for 0 to dark blue for 1."""
    red, green, blue = (round(255 + (end - 255) * min(1.0, max(0.0, share)) ** 1.5) for end in (8, 48, 107))
    return f"#{red:02x}{green:02x}{blue:02x}"
