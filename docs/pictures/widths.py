"""Accuracy against widths: float, nearest rounding and what calibration brings back, from ``benchmarks/results``."""

from __future__ import annotations

import choosing
from svg import BLUE, GREY, INK, ORANGE, Page, Panel

WIDTHS = ("w8a8", "w4a8", "w4a4", "w2a4", "w2a2")


def draw() -> str:
    page = Page(760, 330, "Top-1 of ResNet-20 against widths")
    panel = Panel(page, (60, 40, 520, 230), (-0.3, len(WIDTHS) - 0.7), (0, 100))
    panel.y_ticks((0, 20, 40, 60, 80, 100), ("0", "20", "40", "60", "80", "100"))
    panel.frame("Top-1 on 10,000 test images, ResNet-20, CIFAR-10", "bits of weights (W) and activations (A)", "")
    panel.x_ticks(range(len(WIDTHS)), [widths.upper() for widths in WIDTHS])
    float_top1 = choosing.load("study")["cells"]["hosts/resnet20/w2a2-qdrop"]["float_top1"]
    panel.curve([(-0.3, float_top1), (len(WIDTHS) - 0.7, float_top1)], INK, 1.2, "5 4")
    found = [{row.recipe: row.top1 for row in choosing.measurements(widths)} for widths in WIDTHS]
    names = {"`nearest`": (ORANGE, "nearest rounding"), "`fast`, 200 steps": (BLUE, "fast, 200 steps")}
    for recipe, (colour, label) in names.items():
        points = [(float(place), row[recipe]) for place, row in enumerate(found)]
        panel.curve(points, colour, 2.4)
        for x, y in points:
            page.circle(*panel.at(x, y), 4, colour)
        x, y = panel.at(*points[-1])
        page.words(x + 12, y + 4, f"{label}: {points[-1][1]:.1f}", colour, 12, bold=True)
    x, y = panel.at(len(WIDTHS) - 0.7, float_top1)
    page.words(x + 8, y - 6, f"float: {float_top1:.1f}", INK, 12)
    page.words(60, 322, "The numbers: choosing.md; first and last layer have 8 bits.", GREY, 11)
    return page.text()
