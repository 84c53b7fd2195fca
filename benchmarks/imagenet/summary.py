"""Sum up the runs on the ImageNet networks in ``benchmarks/results/imagenet.json``.

    python benchmarks/imagenet/summary.py

Cells with mean, deviation and number of seeds; contrastive less plain, seed by seed, with intervals over seeds and over
seeds and images at once.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from common import provenance, write_result
from imagenet.one import FOLDER, unpacked
from study.stats import crossed_interval, paired_difference, rounded, spread

Rows = dict[int, dict[str, Any]]  # by seed
Runs = dict[str, Rows]  # by key
SUFFIX = "-contrastive"
SHARES = ("top1", "agreement", "held_out_agreement", "calibration_agreement")
# The bits behind a share in percent, where all seeds have the same images.
BITS = {"top1": "right", "agreement": "agrees"}


def read_runs(folder: Path) -> Runs:
    runs: Runs = {}
    for path in sorted(folder.glob("*/*/*-seed*.json")):
        row = json.loads(path.read_text())
        runs.setdefault(row["key"], {})[row["seed"]] = row
    return runs


def cell_summary(rows: Rows) -> dict[str, Any]:
    ordered = [rows[seed] for seed in sorted(rows)]
    same = ("network", "host", "weights", "activations", "steps", "calibration_images", "precision")
    return {
        **{name: ordered[0][name] for name in (*same, "float_top1", "evaluation_images")},
        "seeds": sorted(rows),
        **{name: spread(list(column(rows, name).values())) for name in SHARES if column(rows, name)},
        "drop": spread([row["float_top1"] - row["top1"] for row in ordered]),
        "cpu_seconds": round(fmean(row["cpu_seconds"] for row in ordered), 1),
        "peak_memory_bytes": max(row["peak_memory_bytes"] for row in ordered),
        "commits": sorted({row["commit"] for row in ordered}),
    }


def column(rows: Rows, share: str) -> dict[int, float]:
    return {seed: rows[seed][share] for seed in sorted(rows) if rows[seed].get(share) is not None}


def difference(ours: Rows, base: Rows, share: str) -> dict[str, Any] | None:
    """Ours less base in points, seed by seed, over the seeds that both have; None where there is none."""
    row = paired_difference(column(ours, share), column(base, share))
    if row is not None and share in BITS:
        table = 100 * np.stack([bits(ours[seed], share) - bits(base[seed], share) for seed in row["seeds"]])
        row["seeds_and_images"] = rounded(crossed_interval(table))
    return row


def bits(row: dict[str, Any], share: str) -> np.ndarray:
    """0 or 1 for each evaluation image, (N,)."""
    return unpacked(row[BITS[share]], row["evaluation_images"]).astype(np.int8)


def pairs(runs: Runs) -> list[dict[str, Any]]:
    """Every plain cell of a host with its contrastive one, if both were run, and their differences."""
    found = []
    for key, base in runs.items():
        ours = runs.get(key + SUFFIX)
        if ours is not None:
            differences = {share: difference(ours, base, share) for share in SHARES}
            found.append({"plain": key, "contrastive": key + SUFFIX, **differences})
    return found


def summarise(runs: Runs) -> dict[str, Any]:
    return {"cells": {key: cell_summary(rows) for key, rows in runs.items()}, "pairs": pairs(runs), **provenance()}


def main() -> None:
    print(write_result("imagenet", summarise(read_runs(FOLDER))))


if __name__ == "__main__":
    main()
