"""Draw the plots of docs/results.md, docs/images/study_*.svg, from the results of the study.

    pip install matplotlib
    python benchmarks/study/plots.py

What has no results yet is left out, and said.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from statistics import fmean
from typing import Any

ROOT = Path(__file__).resolve().parent.parent.parent
RESULTS = ROOT / "benchmarks" / "results"
IMAGES = ROOT / "docs" / "images"
PLAIN, OURS, GREY = "#0072B2", "#D55E00", "#777777"  # Okabe and Ito: told apart by the colour-blind
MARKS = {"resnet20": "o", "resnet56": "s", "demo": "^", "mobilenetv2": "D"}
CLASSES = ("plane", "car", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


def differences(plt: Any, result: dict[str, Any]) -> Any:
    """A forest plot: one line for each host and pair of widths, one panel for each network."""
    rows = [row for row in result["hosts"] if row["difference"] is not None and "bootstrap" in row["difference"]]
    networks = list(dict.fromkeys(row["network"] for row in rows))
    if not rows:
        return None
    most = max(sum(row["network"] == network for row in rows) for network in networks)
    figure, axes = plt.subplots(1, len(networks), figsize=(4 * len(networks) + 1, 1.2 + 0.22 * most), squeeze=False)
    for axis, network in zip(axes[0], networks, strict=True):
        own = [row for row in rows if row["network"] == network][::-1]
        for height, row in enumerate(own):
            difference = row["difference"]
            low, high = difference.get("t_interval", difference["bootstrap"])
            is_clear = difference["n"] > 2 and (low > 0 or high < 0)  # as in page.py
            colour = (OURS if difference["mean"] > 0 else PLAIN) if is_clear else GREY
            axis.plot([low, high], [height, height], color=colour, linewidth=1.4)
            axis.plot(difference["mean"], height, "o", color=colour, markersize=4)
        axis.axvline(0, color="black", linewidth=0.8)
        axis.set_yticks(range(len(own)), [f"{row['widths']} {row['host']}" for row in own], fontsize=7)
        axis.set(title=network, xlabel="difference in top-1, points", ylim=(-0.8, len(own) - 0.2))
    return figure


def bounds(plt: Any, runs: list[dict[str, Any]]) -> Any:
    """Behind each unit, before and after, plain and contrastive: QDrop at W2A2 on each network."""
    lines = {}
    for run in runs:
        if run["part"] == "hosts" and run["host"] == "qdrop" and run["name"].startswith("w2a2"):
            lines.setdefault(run["network"], {}).setdefault(run["contrastive"] is not None, []).append(run["units"])
    if not lines:
        return None
    figure, axes = plt.subplots(1, len(lines), figsize=(4 * len(lines) + 1, 3.4), squeeze=False)
    for axis, (network, by_term) in zip(axes[0], lines.items(), strict=True):
        names = [unit["name"] for unit in next(iter(by_term.values()))[0]]
        before = [row for rows in by_term.values() for row in rows]
        axis.plot(_means(before, 0), color=GREY, linestyle=":", label="nearest rounding")
        for is_ours, colour, label in ((False, PLAIN, "QDrop"), (True, OURS, "QDrop + contrastive")):
            if is_ours in by_term:
                axis.plot(_means(by_term[is_ours], 1), color=colour, marker="so"[is_ours], markersize=3, label=label)
        axis.set_xticks(range(len(names)), names, rotation=90, fontsize=6)
        axis.set(title=network, ylabel="bound, nats")
    axes[0][0].legend(fontsize=7)
    return figure


def _means(runs: list[list[dict[str, Any]]], side: int) -> list[float]:
    return [fmean(unit["bound"]["held_out"][side] for unit in column) for column in zip(*runs, strict=True)]


def bound_accuracy(plt: Any, runs: list[dict[str, Any]]) -> Any:
    """One point for each run."""
    if not runs:
        return None
    figure, axis = plt.subplots(figsize=(5.5, 4))
    for network, mark in MARKS.items():
        for is_ours, colour in ((False, PLAIN), (True, OURS)):
            own = [run for run in runs if run["network"] == network and (run["contrastive"] is not None) == is_ours]
            x = [fmean(unit["bound"]["held_out"][1] for unit in run["units"]) for run in own]
            label = network if not is_ours and own else None
            y = [run["test_top1"] for run in own]
            axis.scatter(x, y, s=9, c=colour, marker=mark, alpha=0.5, linewidths=0, label=label)
    axis.set(xlabel="bound, mean over units, nats", ylabel="top-1 on the test images, %")
    axis.legend(fontsize=7, title="orange: contrastive", title_fontsize=7)
    return figure


def features(plt: Any, path: Path) -> Any:
    if not path.exists():
        return None
    result = json.loads(path.read_text())
    labels = [int(word) for word in result["labels"].split()]
    figure, axes = plt.subplots(1, 3, figsize=(12, 4), sharex=True, sharey=True)
    titles = {"float": "float", "plain": "QDrop, W2A2", "contrastive": "QDrop + contrastive, W2A2"}
    for axis, (name, title) in zip(axes, titles.items(), strict=True):
        points = [[float(word) for word in pair.split()] for pair in result["points"][name]]
        x, y = zip(*points, strict=True)
        drawn = axis.scatter(x, y, s=8, c=labels, cmap="tab10", linewidths=0, alpha=0.8)
        axis.set(title=title)
    handles, _ = drawn.legend_elements()
    axes[2].legend(handles, CLASSES, fontsize=6, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return figure


def read_runs(folder: Path, steps: int) -> list[dict[str, Any]]:
    runs = [json.loads(path.read_text()) for path in sorted(folder.glob("*/*/*-seed*.json"))]
    return [run for run in runs if run["steps"] == steps or run["host"] == "nearest"]


def drawn(plt: Any) -> Iterator[tuple[str, Any]]:
    """Yield the name and the figure of each plot, None where there is nothing to draw."""
    path = RESULTS / "study.json"
    result = json.loads(path.read_text()) if path.exists() else {"hosts": [], "steps": 0}
    runs = read_runs(RESULTS / "study", result["steps"])
    yield "study_differences.svg", differences(plt, result)
    yield "study_bounds.svg", bounds(plt, runs)
    yield "study_bound_accuracy.svg", bound_accuracy(plt, runs)
    yield "study_features.svg", features(plt, RESULTS / "study_features.json")


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    try:
        import matplotlib
        from matplotlib import pyplot as plt
    except ImportError:
        sys.exit("the plots need matplotlib: pip install matplotlib")
    matplotlib.use("svg")
    matplotlib.rcParams.update({"svg.hashsalt": "clcalib", "svg.fonttype": "none", "font.size": 8})
    for name, figure in drawn(plt):
        if figure is None:
            print(f"{name}: nothing to draw yet")
            continue
        figure.tight_layout()
        IMAGES.mkdir(parents=True, exist_ok=True)
        figure.savefig(IMAGES / name, metadata={"Date": None})
        plt.close(figure)
        print(IMAGES / name)


if __name__ == "__main__":
    main()
