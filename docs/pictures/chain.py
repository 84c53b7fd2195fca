"""The embedded ResNet-20 as its chain of units, one of them under way."""

from __future__ import annotations

import torch

import clcalib
from demo_network import resnet20
from svg import BLUE, FAINT, GREEN, GREY, INK, ORANGE, Page

UNDER_WAY = 4
COLUMNS = 11


def draw() -> str:
    chain = clcalib.capture(resnet20().eval(), torch.zeros(2, 3, 32, 32))
    rows = clcalib.describe(chain)
    page = Page(960, 300, "The chain of units of ResNet-20")
    width, gap, top, height = 74.0, 12.0, 96.0, 62.0
    for row in rows:
        x = 10 + row.index * (width + gap)
        colour = GREEN if row.index < UNDER_WAY else ORANGE if row.index == UNDER_WAY else BLUE
        page.rectangle(x, top, width, height, "#ffffff" if row.index != UNDER_WAY else "#FDEFE6", colour, 5)
        page.words(x + width / 2, top + 20, row.name, colour, 12, "middle", bold=True)
        page.words(x + width / 2, top + 37, shape(row.output_shapes[0]), INK, 10, "middle")
        page.words(
            x + width / 2, top + 52, f"{len(row.layers)} layer" + "s" * (len(row.layers) > 1), GREY, 10, "middle"
        )
        if row.index:
            page.arrow((x - gap, top + height / 2), (x - 1, top + height / 2), GREY)
    step = width + gap
    groups = (
        (0, UNDER_WAY, GREEN, "prefix: quantized already", "its output is stored, once for all images"),
        (UNDER_WAY, UNDER_WAY + 1, ORANGE, "the unit", "is optimised"),
        (
            UNDER_WAY + 1,
            len(rows),
            BLUE,
            "suffix: the float network, frozen",
            "only terms that look to its end pass through it",
        ),
    )
    for first, last, colour, name, what in groups:
        left, right = 10 + first * step, 10 + last * step - gap
        page.line(((left, 82), (left, 74), (right, 74), (right, 82)), colour, 1.5)
        page.words((left + right) / 2, 64, name, colour, 13, "middle", bold=True)
        page.words((left + right) / 2, 44, what, GREY, 11, "middle")
    middle = 10 + UNDER_WAY * step + width / 2
    page.line(((middle, top + height), (middle, 200)), GREY, 1, "3 3")
    page.rectangle(middle - 205, 200, 410, 78, "#ffffff", FAINT, 5)
    page.words(middle, 222, "input: a mix of the quantized and the float prefix", INK, 12, "middle")
    page.words(middle, 242, "output: compared with that of the float unit", INK, 12, "middle")
    page.words(middle, 262, "then its codes are fixed, and the next unit begins", INK, 12, "middle")
    return page.text()


def shape(sizes: tuple[object, ...]) -> str:
    return " x ".join(str(size) for size in sizes[1:])
