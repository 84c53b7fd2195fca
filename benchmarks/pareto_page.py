"""The table of docs/mixed_precision.md, from ``benchmarks/results/pareto.json``; ``readme.py`` puts it there."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Row = Mapping[str, Any]
KINDS = {"uniform": "one width", "unit": "for each unit", "layer": "for each layer"}
MIXED = ("unit", "layer")


def fronts(result: Row) -> str:
    """Accuracy of each recipe at each size, and what mixed widths gain where a uniform width has the same bytes."""
    grid = result["networks"]["resnet20"]
    recipes = list(dict.fromkeys(row["settings"]["recipe"] for row in grid.values()))
    lines = [
        f"| recipe | mean width | kB | {' | '.join(KINDS.values())} | units less one width | layers less one width |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for recipe in recipes:
        rows = {_place(row): row for row in grid.values() if row["settings"]["recipe"] == recipe}
        for width in sorted({width for _, width in rows}):
            lines.append(f"| `{recipe}` | {' | '.join(_cells(rows, width))} |")
    return "\n".join([*lines, "", _about(grid)])


def _cells(rows: Mapping[tuple[str, float], Row], width: float) -> list[str]:
    own = {kind: rows.get((kind, width)) for kind in KINDS}
    size = max(row["bytes"] for row in own.values() if row is not None)
    accuracies = ["-" if row is None else _spread(row) for row in own.values()]
    gains = [_gains(own[kind], own["uniform"]) for kind in MIXED]
    return [f"{width:g}", f"{size / 1000:.0f}", *accuracies, *gains]


def _gains(mixed: Row | None, uniform: Row | None) -> str:
    """By seed, of the seeds that both have."""
    if mixed is None or uniform is None:
        return "-"
    own, other = (dict(zip(row["seeds"], row["top1"], strict=True)) for row in (mixed, uniform))
    return ", ".join(f"{own[seed] - other[seed]:+.2f}" for seed in sorted(own.keys() & other.keys())) or "-"


def _place(row: Row) -> tuple[str, float]:
    return row["settings"]["kind"], row["settings"]["width"]


def _spread(row: Row) -> str:
    return f"{row['mean']:.2f} (1)" if row["n"] == 1 else f"{row['mean']:.2f} ± {row['deviation']:.2f} ({row['n']})"


def _about(grid: Mapping[str, Row]) -> str:
    first = next(iter(grid.values()))
    machines = sorted({machine for row in grid.values() for machine in row["machines"]})
    return (
        f"ResNet-20 with public weights (float {first['float_top1']:.2f}), activations 8 bits, first and last layer "
        f"8 bits; top-1 in % on {first['test_images']:,} test images, mean ± standard deviation (seeds); - is not run, "
        "or has no counterpart. A mean width of 2.5 has the bytes halfway between 2 and 3 bits everywhere. Differences "
        "are by seed, where one width has the same bytes; "
        f"{'; '.join(machines)} ([pareto.json](../benchmarks/results/pareto.json))."
    )
