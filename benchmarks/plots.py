"""Draws accuracy against steps and against CPU time, from ``benchmarks/results/fewer_steps.json``.

    pip install matplotlib
    python benchmarks/plots.py                                     # docs/images/accuracy_against_steps.svg
    python benchmarks/plots.py --results FOLDER --out plot.png     # from the single runs in FOLDER/fewer_steps/

Top-1 on the test images, ResNet-20, W2A2.  Lines join the means over seeds, bands go from the least to the largest.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

from page_parts import RESULTS, ROOT

IMAGE = ROOT / "docs" / "images" / "accuracy_against_steps.svg"
GRIDS = ("curve", "final")
NAMES = {
    "fast": "fast",
    "qdrop": "QDrop",
    "brecq": "BRECQ",
    "adaround": "AdaRound",
    "pd_quant": "PD-Quant",
    "genie_m": "GENIE-M",
    "straight_through": "straight-through",
    "scale_only": "scales only",
}
# Told apart in grey and by the colour-blind (Okabe and Ito), and by the shape of the mark.  Scales alone, far below the
# others, have no line: it would leave the others a tenth of the height.
STYLES = {
    "fast": ("#D55E00", "o"),
    "qdrop": ("#0072B2", "s"),
    "brecq": ("#009E73", "^"),
    "adaround": ("#7A5195", "D"),
    "pd_quant": ("#000000", "v"),
    "genie_m": ("#56B4E9", "P"),
    "straight_through": ("#B8860B", "X"),
}
LABEL_GAP = 0.055  # between two labels one above the other, as a part of the panel's height
LABEL_WIDTH = 4.0  # lines that end within this factor have labels one above the other


class Point(NamedTuple):
    """A recipe at a number of steps: top-1 of each seed, and the mean CPU seconds of a run."""

    steps: int
    seconds: float
    top1: tuple[float, ...]


def from_summary(path: Path) -> list[dict[str, Any]]:
    """One row for each seed; seconds are the mean of the cell."""
    grids = json.loads(path.read_text())["grids"]
    rows = [row for grid in GRIDS for row in grids.get(grid, {}).values()]
    return [
        {"settings": row["settings"], "seed": seed, "test_top1": value, "cpu_seconds": row["cpu_seconds"]}
        for row in rows
        for seed, value in zip(row["seeds"], row["test_top1"], strict=True)
    ]


def from_runs(folder: Path) -> list[dict[str, Any]]:
    paths = [path for grid in GRIDS for path in sorted((folder / "fewer_steps" / grid).glob("*.json"))]
    return [json.loads(path.read_text()) for path in paths]


def points_of(rows: list[dict[str, Any]]) -> dict[str, list[Point]]:
    """By recipe, ordered by steps; a seed that both grids ran counts once."""
    cells: dict[tuple[str, int], dict[int, dict[str, Any]]] = {}
    for row in rows:
        settings = row["settings"]
        if settings["activations"] == 2 and settings["recipe"] in NAMES:
            key = settings["recipe"], settings["options"].get("steps", 0)
            cells.setdefault(key, {}).setdefault(row["seed"], row)
    points: dict[str, list[Point]] = {}
    for (recipe, steps), seeds in sorted(cells.items()):
        top1 = tuple(row["test_top1"] for row in seeds.values())
        points.setdefault(recipe, []).append(Point(steps, fmean(row["cpu_seconds"] for row in seeds.values()), top1))
    return {name: points[name] for name in NAMES if name in points}


def load_pyplot() -> Any:
    try:
        import matplotlib
    except ImportError:
        sys.exit("the plots need matplotlib, which clcalib does not: pip install matplotlib")
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    plt.rcParams.update(
        {
            "font.size": 12,
            "font.family": "sans-serif",
            "svg.hashsalt": "clcalib",  # the same file from the same numbers
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.edgecolor": "#444444",
            "axes.grid": True,
            "axes.grid.axis": "y",
            "grid.color": "#E3E3E3",
        }
    )
    return plt


def draw_lines(axes: Any, points: dict[str, list[Point]], field: str) -> dict[str, tuple[float, float]]:
    """Returns the end of each line."""
    ends = {}
    for name, row in points.items():
        colour, mark = STYLES[name]
        x, means = [getattr(point, field) for point in row], [fmean(point.top1) for point in row]
        lows, highs = [min(point.top1) for point in row], [max(point.top1) for point in row]
        axes.fill_between(x, lows, highs, color=colour, alpha=0.18, linewidth=0)
        axes.plot(x, means, color=colour, marker=mark, markersize=6, linewidth=2)
        ends[name] = x[-1], means[-1]
    return ends


def label_ends(axes: Any, ends: dict[str, tuple[float, float]]) -> None:
    """Names to the right of the lines' ends, moved apart where they would overlap."""
    from matplotlib.patheffects import withStroke

    low, high = axes.get_ylim()
    gap = LABEL_GAP * (high - low)
    places: dict[str, tuple[float, float]] = {}
    for name, (x, y) in sorted(ends.items(), key=lambda item: -item[1][1]):
        beside = [place for other, place in places.values() if 1 / LABEL_WIDTH < other / x < LABEL_WIDTH]
        places[name] = x, min([y, *(place - gap for place in beside)])
        axes.annotate(
            NAMES[name],
            (x, places[name][1]),
            xytext=(9, 0),
            textcoords="offset points",
            va="center",
            color=STYLES[name][0],
            fontweight="bold",
            annotation_clip=False,
            path_effects=[withStroke(linewidth=3, foreground="white")],  # where another line passes
        )


def draw(points: dict[str, list[Point]], out: Path) -> None:
    plt = load_pyplot()
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    figure, panels = plt.subplots(1, 2, figsize=(11, 4.4), sharey=True, layout="constrained")
    labels = {"steps": "optimiser steps for each unit", "seconds": "CPU seconds of the whole run, one thread"}
    for axes, (field, label) in zip(panels, labels.items(), strict=True):
        axes.set_xscale("log")
        ends = draw_lines(axes, points, field)
        axes.set_xlabel(label)
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 3)))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.tick_params(which="both", color="#444444")
        axes.tick_params(axis="y", length=0)
        label_ends(axes, ends)
    panels[0].set_ylabel("top-1 on the test images, %")
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, facecolor="white", dpi=120, metadata={"Date": None} if out.suffix == ".svg" else None)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, help="take the single runs in this folder of results")
    parser.add_argument("--out", type=Path, default=IMAGE, help="an .svg, .png or .pdf file")
    given = parser.parse_args()
    rows = from_summary(RESULTS / "fewer_steps.json") if given.results is None else from_runs(given.results)
    points = {name: row for name, row in points_of(rows).items() if name in STYLES}
    if not points:
        sys.exit(f"there are no runs of the grids {' and '.join(GRIDS)} yet; run benchmarks/fewer_steps.py first")
    draw(points, given.out)
    print(given.out)


if __name__ == "__main__":
    main()
