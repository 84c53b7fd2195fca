"""Writes the measurements into README.md, from the JSON files in ``benchmarks/results`` and nowhere else.

python benchmarks/readme.py            # writes
python benchmarks/readme.py --check    # fails where README.md says something else
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
START, END = "<!-- measurements: begin -->", "<!-- measurements: end -->"
DEMO_START, DEMO_END = "<!-- demo: begin -->", "<!-- demo: end -->"
NAMES = {"nearest": "nearest", "adaround": "AdaRound", "brecq": "BRECQ", "qdrop": "QDrop"}
CONTRASTIVE = "qdrop-contrastive"


def load(name: str) -> dict[str, Any]:
    data: dict[str, Any] = json.loads((ROOT / "benchmarks" / "results" / f"{name}.json").read_text())
    return data


def spread(row: dict[str, Any] | None) -> str:
    """Mean, deviation and number of seeds; a single seed has no deviation."""
    if row is None:
        return "not run"
    return f"{row['mean']:.2f} (1)" if row["n"] == 1 else f"{row['mean']:.2f} ± {row['deviation']:.2f} ({row['n']})"


def hosts(grid: dict[str, Any]) -> list[str]:
    widths = [width for width in ("w2a4", "w2a2") if any(name.startswith(width) for name in grid)]
    lines = ["| method | " + " | ".join(width.upper() for width in widths) + " |", "|---" * (len(widths) + 1) + "|"]
    for key, name in NAMES.items():
        lines.append(f"| {name} | " + " | ".join(spread(grid.get(f"{width}-{key}")) for width in widths) + " |")
    cells = [spread(grid.get(f"{width}-{CONTRASTIVE}")) for width in widths]
    lines.append("| QDrop + contrastive | " + " | ".join(cells) + " |")
    gains = [grid.get(f"{width}-{CONTRASTIVE}", {}).get("paired_gains", []) for width in widths]
    lines.append("| paired gain, each seed | " + " | ".join(signed(values) for values in gains) + " |")
    return lines


def signed(values: list[float]) -> str:
    return ", ".join(f"{value:+.2f}" for value in values) or "-"


def forms(grid: dict[str, Any]) -> list[str]:
    lines = ["| form | top-1 | paired gain, each seed |", "|---|---|---|"]
    ordered = sorted(grid.items(), key=lambda item: (item[0] != "plain", -item[1]["mean"]))
    for name, row in ordered:
        lines.append(f"| `{name}` | {spread(row)} | {signed(row['paired_gains'])} |")
    return lines


def demo() -> str:
    result = load("demo")
    lines = [DEMO_START, "| | float | nearest | QDrop | QDrop + contrastive |", "|---|---|---|---|---|"]
    by_widths: dict[str, list[dict[str, Any]]] = {}
    for run in result["runs"]:
        by_widths.setdefault(f"W{run['weight_bits']}A{run['activation_bits']}", []).append(run)
    for widths, (plain, contrastive) in by_widths.items():
        values = (plain["float_top1"], plain["nearest_top1"], plain["quantized_top1"], contrastive["quantized_top1"])
        cells = " | ".join(f"{100 * value:.1f}" for value in values)
        lines.append(f"| {widths}, {plain['steps_per_unit']} steps | {cells} |")
    about = f"Top-1 in % on 2,000 test images, one seed; {result['seconds']} s in all on {result['machine']}."
    return "\n".join([*lines, "", about, DEMO_END])


def text() -> str:
    accuracy, steps, ranges = load("accuracy"), load("step_cost"), load("range_speed")
    grids = accuracy["grids"]
    float_top1 = next(iter(grids["hosts"].values()))["float_top1"]
    costs = steps["milliseconds_per_step"]
    operators = ", ".join(
        f"`{row['operator'].removeprefix('aten::')}` {100 * row['share']:.0f} %"
        for row in steps["operators_of_a_qdrop_run"][:6]
    )
    return "\n".join(
        [
            START,
            f"ResNet-20 with public weights (float {float_top1:.2f} %), CIFAR-10, 1,024 images to calibrate, all",
            "10,000 test images, 2,000 steps for each unit, QDrop setting, rates as by default; top-1 in %,",
            "mean ± standard deviation (number of seeds):",
            "",
            *hosts(grids["hosts"]),
            "",
            "Forms of the contrastive term on QDrop at W2A2 and 200 steps (weights relative to the host's loss,",
            "`share=1`; every fourth step and temperature 0.1 unless it says otherwise). One or two seeds each: leads",
            "that chose the defaults, not results (a name without a weight has weight 1):",
            "",
            *forms(grids["contrastive"]),
            "",
            f"One step, batch 32, one thread, CPU time, mean over the units of ResNet-20 ({steps['machine']}): "
            + "; ".join(f"{name} {value:.1f} ms" for name, value in costs.items())
            + f". Where a QDrop run spends its time: {operators}.",
            "",
            range_line(ranges),
            "",
            "Each number comes from a script in [benchmarks](benchmarks); its JSON is in",
            "[benchmarks/results](benchmarks/results).",
            END,
        ]
    )


def range_line(ranges: dict[str, Any]) -> str:
    rows = ", ".join(
        f"{row['bits']} bits {row['ours']['cpu_seconds']:.2f} s (loop over candidates "
        f"{row['loop']['cpu_seconds']:.2f} s, error {row['ours']['error'] / row['loop']['error']:.4f} of its)"
        for row in ranges["rows"]
    )
    return f"Range search of all weights of ResNet-20 (`mse_grid`, per channel, one thread, CPU time): {rows}."


def replaced(readme: str, start: str, end: str, block: str) -> str:
    """The text with the block between two markers, markers included, put in place of the old one."""
    before, _, rest = readme.partition(start)
    return before + block + rest.partition(end)[2]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="change nothing; fail where README.md differs")
    arguments = parser.parse_args()
    path = ROOT / "README.md"
    readme = path.read_text()
    wanted = replaced(replaced(readme, START, END, text()), DEMO_START, DEMO_END, demo())
    if arguments.check and wanted != readme:
        sys.exit("README.md differs from benchmarks/results; run python benchmarks/readme.py")
    if not arguments.check:
        path.write_text(wanted)


if __name__ == "__main__":
    main()
