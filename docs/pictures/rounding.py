"""Soft rounding: what v stands for, what the penalty does to it, and six weights on their way to their codes."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from clcalib.fused.soft import rectified_sigmoid
from clcalib.objectives.rounding_penalty import RoundingPenalty
from clcalib.quant.rounding import initial_v
from clcalib.quant.spec import QParams
from svg import BLUE, GREEN, GREY, INK, ORANGE, PURPLE, Page, Panel

STEPS, RATE, WEIGHT = 400, 0.05, 1.5
FRACTIONS = (0.15, 0.35, 0.42, 0.45, 0.68, 0.9)
COLOURS = (BLUE, ORANGE, GREEN, PURPLE, "#999933", INK)


def draw() -> str:
    page = Page(960, 330, "Soft rounding")
    _function(Panel(page, (50, 50, 230, 220), (-5, 5), (0, 1)))
    _penalty(Panel(page, (370, 50, 230, 220), (0, 1), (0, 1)))
    _way(Panel(page, (690, 50, 230, 220), (0, STEPS), (0, 1)))
    return page.text()


def _function(panel: Panel) -> None:
    panel.y_ticks((0, 0.5, 1), ("down", "1/2", "up"))
    panel.frame("h(v): between two codes", "v", "")
    panel.x_ticks((-4, -2, 0, 2, 4), ("-4", "-2", "0", "2", "4"))
    grid = [value / 20 for value in range(-100, 101)]
    heights = rectified_sigmoid(torch.tensor(grid, dtype=torch.float64)).tolist()
    panel.curve(list(zip(grid, heights, strict=True)), BLUE)
    panel.curve([(-5, 0), (0, 0), (0, 1), (5, 1)], GREY, 1.2, "4 3")
    panel.page.words(*panel.at(0.4, 0.08), "dashed: hardened, v >= 0", GREY, 11)


def _penalty(panel: Panel) -> None:
    panel.frame("the penalty, while beta falls", "h", "")
    panel.x_ticks((0, 0.5, 1), ("down", "1/2", "up"))
    grid = [value / 100 for value in range(101)]
    for beta, colour in ((20, BLUE), (8, GREEN), (2, ORANGE)):
        panel.curve([(h, 1 - abs(2 * h - 1) ** beta) for h in grid], colour)
    for beta, colour, y in ((20, BLUE, 1.0), (8, GREEN, 0.9), (2, ORANGE, 0.8)):
        panel.page.words(*panel.at(0.5, y - 0.12), f"beta {beta}", colour, 11, "middle", bold=True)


def _way(panel: Panel) -> None:
    panel.y_ticks((0, 0.5, 1), ("down", "1/2", "up"))
    panel.frame("six weights on their way", "step", "")
    panel.x_ticks((0, 80, STEPS), ("0", "80", str(STEPS)))
    paths = simulated()
    for path, colour in zip(paths, COLOURS, strict=True):
        panel.curve([(float(step), h) for step, h in enumerate(path)][::4], colour, 1.8)
        panel.page.circle(*panel.at(0, path[0]), 3, colour)


def simulated() -> list[list[float]]:
    """h of six weights that are trained to give the float output together, penalty and all, with Adam in float64."""
    weights = torch.tensor(FRACTIONS, dtype=torch.float64)
    v = initial_v(weights, QParams(torch.tensor(1.0), torch.tensor(0.0))).tolist()
    inputs = [[math.sin(1.7 * row + 2.3 * column) + 0.4 for column in range(6)] for row in range(12)]
    first, second = [0.0] * 6, [0.0] * 6
    penalty = RoundingPenalty()
    paths = [[_h(value)] for value in v]
    for step in range(1, STEPS + 1):
        gradient = _gradient(v, inputs, penalty.annealed(step / STEPS))
        for place, slope in enumerate(gradient):
            first[place] = 0.9 * first[place] + 0.1 * slope
            second[place] = 0.999 * second[place] + 0.001 * slope * slope
            mean, square = first[place] / (1 - 0.9**step), second[place] / (1 - 0.999**step)
            v[place] -= RATE * mean / (math.sqrt(square) + 1e-8)
            paths[place].append(_h(v[place]))
    return paths


def _gradient(v: Sequence[float], inputs: Sequence[Sequence[float]], beta: float | None) -> list[float]:
    h = [_h(value) for value in v]
    gradient = [0.0] * len(v)
    for row in inputs:
        error = sum(x * (value - fraction) for x, value, fraction in zip(row, h, FRACTIONS, strict=True))
        gradient = [total + 2 * error * x / len(inputs) for total, x in zip(gradient, row, strict=True)]
    if beta is not None:
        sides = [2 * value - 1 for value in h]
        slopes = [-2 * beta * abs(side) ** (beta - 1) * math.copysign(1, side) for side in sides]
        gradient = [total + WEIGHT * slope / len(v) for total, slope in zip(gradient, slopes, strict=True)]
    return [total * _slope(value) for total, value in zip(gradient, v, strict=True)]


def _h(v: float) -> float:
    return min(1.0, max(0.0, 1.2 / (1 + math.exp(-v)) - 0.1))


def _slope(v: float) -> float:
    sigmoid = 1 / (1 + math.exp(-v))
    return 1.2 * sigmoid * (1 - sigmoid) if 0 < _h(v) < 1 else 0.0
