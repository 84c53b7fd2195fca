"""Sum up the runs of the study in ``benchmarks/results/study.json``, and those of other numbers of steps beside it.

    python benchmarks/study/summary.py

Cells with mean, deviation and number of seeds; differences (contrastive less plain, seed by seed, of runs with the same
precision) with intervals; the correlation of the units' bounds with the accuracy; and what is declared and not run.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from statistics import fmean
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from common import provenance, write_result
from study.grid import (
    HOSTS,
    NETWORK_NAMES,
    PARTS,
    RATE_FACTORS,
    RATE_NETWORKS,
    SEEDS,
    STEPS,
    TUNINGS,
    WIDTHS,
    Cell,
    ablation_tables,
    bias_cell,
    bias_pairs,
    host_key,
    rate_key,
    tuning_pairs,
)
from study.one import FOLDER, HELD_OUT_IMAGES
from study.stats import correlations, paired_difference, spread

Runs = dict[str, dict[int, dict[str, Any]]]  # by key, by seed


def read_runs(folder: Path, steps: int) -> Runs:
    """The runs with this number of steps, and those of nearest rounding, which takes none."""
    runs: Runs = {}
    for path in sorted(folder.glob("*/*/*-seed*.json")):
        row = json.loads(path.read_text())
        if row["steps"] == steps or row["host"] == "nearest":
            runs.setdefault(row["key"], {})[row["seed"]] = row
    return runs


def steps_in(folder: Path) -> list[int]:
    """The numbers of steps that there are runs of, the default one among them."""
    rows = (json.loads(path.read_text()) for path in folder.glob("*/*/*-seed*.json"))
    return sorted({STEPS} | {row["steps"] for row in rows if row["host"] != "nearest"})


def result_name(steps: int) -> str:
    """The result file of a number of steps."""
    return "study" if steps == STEPS else f"study-steps-{steps}"


def alike(*cells: dict[int, dict[str, Any]]) -> list[int]:
    """The seeds that all cells have, each at one precision in all of them."""
    common = set[int].intersection(*(set(rows) for rows in cells))
    return [seed for seed in sorted(common) if len({rows[seed]["precision"] for rows in cells}) == 1]


def column(rows: dict[int, dict[str, Any]], name: str) -> dict[int, float]:
    return {seed: row[name] for seed, row in rows.items() if row.get(name) is not None}


def cell_summary(rows: dict[int, dict[str, Any]]) -> dict[str, Any]:
    any_row = next(iter(rows.values()))
    ordered = [rows[seed] for seed in sorted(rows)]
    return {
        "seeds": sorted(rows),
        "test": spread([row["test_top1"] for row in ordered]),
        "selection": spread([row["selection_top1"] for row in ordered]),
        "test_top1": [row["test_top1"] for row in ordered],
        "float_top1": any_row["float_top1"],
        "cpu_seconds": round(fmean(row["cpu_seconds"] for row in ordered), 1),
        "overfitting": _mean_over_units(ordered, _overfitting),
        "bound_before": _mean_over_units(ordered, lambda unit: unit["bound"]["held_out"][0]),
        "bound_after": _mean_over_units(ordered, lambda unit: unit["bound"]["held_out"][1]),
        "bound_after_calibration": _mean_over_units(ordered, lambda unit: unit["bound"]["calibration"][1]),
        "precisions": {} if any_row["host"] == "nearest" else Counter(row["precision"] for row in ordered),
        "commits": sorted({row["commit"] for row in ordered}),
        "machines": sorted({f"torch {row['torch']}, {row['machine']}" for row in ordered}),
    }


def _mean_over_units(rows: list[dict[str, Any]], quantity: Callable[[dict[str, Any]], float]) -> float | None:
    units = [unit for row in rows for unit in row["units"] if unit["bound"] is not None]
    return round(fmean(quantity(unit) for unit in units), 4) if units else None


def _overfitting(unit: dict[str, Any]) -> float:
    """The unit's error on held-out images over that on the calibration images."""
    return float(unit["error"]["held_out"][1] / max(unit["error"]["calibration"][1], 1e-12))


def compared(runs: Runs, ours: str, base: str, name: str = "contrastive") -> dict[str, Any] | None:
    """Both cells, ours under ``name``, and the difference of their runs that are alike; None where neither was run."""
    if ours not in runs and base not in runs:
        return None
    pair = runs.get(ours, {}), runs.get(base, {})
    ours_alike, base_alike = ({seed: rows[seed] for seed in alike(*pair)} for rows in pair)
    columns = ("test_top1", "selection_top1")
    test, selection = (paired_difference(column(ours_alike, own), column(base_alike, own)) for own in columns)
    return {name: ours, "plain": base, "difference": test, "selection_difference": selection}


def host_table(runs: Runs, steps: int) -> list[dict[str, Any]]:
    rows = []
    for network in NETWORK_NAMES:
        for weights, activations in WIDTHS:
            for host in HOSTS:
                widths = f"w{weights}a{activations}"
                keys = [
                    host_key(network, host, is_contrastive=own, widths=widths, steps=steps) for own in (True, False)
                ]
                pair = compared(runs, *keys)
                if pair is not None:
                    rows.append({"network": network, "widths": widths.upper(), "host": host, **pair})
    return rows


def rate_table(runs: Runs, steps: int) -> list[dict[str, Any]]:
    """Hosts at each rate, and both at the rate that the selection images prefer, each for itself."""
    rows = []
    for network in RATE_NETWORKS:
        for host in HOSTS:
            at = {
                own: {
                    factor: rate_key(network, host, factor, is_contrastive=own, steps=steps) for factor in RATE_FACTORS
                }
                for own in (True, False)
            }
            for factor in RATE_FACTORS:
                pair = compared(runs, at[True][factor], at[False][factor])
                if pair is not None:
                    rows.append({"network": network, "host": host, "factor": factor, **pair})
            if all(key in runs for keys in at.values() for key in keys.values()):
                everywhere = alike(*(runs[key] for keys in at.values() for key in keys.values()))
                if not everywhere:
                    continue
                best = {
                    own: max(keys.values(), key=lambda key: selected(runs[key], everywhere)) for own, keys in at.items()
                }
                rows.append(
                    {"network": network, "host": host, "factor": "best", **(compared(runs, *best.values()) or {})}
                )
    return rows


def bias_table(runs: Runs, steps: int) -> list[dict[str, Any]]:
    """Hosts with trained biases against the same without."""
    rows = []
    for ours, plain in bias_pairs(steps):
        pair = compared(runs, ours.key, plain.key, "biases")
        if pair is not None:
            widths = f"W{ours.weights}A{ours.activations}"
            rows.append({"network": ours.network, "widths": widths, "host": ours.host, "rate": ours.bias_rate, **pair})
    return rows


def tuning_table(runs: Runs, steps: int) -> list[dict[str, Any]]:
    """Hosts with trained biases and tuning against the same without tuning, and against the host alone."""
    rows = []
    for ours, plain in tuning_pairs(steps):
        bare = bias_cell(ours.network, ours.host, None, (ours.weights, ours.activations), steps)
        pair, both = compared(runs, ours.key, plain.key, "tuning"), compared(runs, ours.key, bare.key)
        if ours.key in runs and pair is not None and both is not None:
            widths = f"W{ours.weights}A{ours.activations}"
            kind = next(name for name, settings in TUNINGS.items() if settings == ours.tuning)
            told = {"network": ours.network, "widths": widths, "host": ours.host, "kind": kind}
            rows.append({**told, **pair, "both_difference": both["difference"]})
    return rows


def selected(rows: dict[int, dict[str, Any]], seeds: Iterable[int]) -> float:
    """The selection accuracy over the seeds that all candidates have, so that all saw the same images."""
    return fmean(rows[seed]["selection_top1"] for seed in seeds)


def ablation_rows(runs: Runs, steps: int) -> dict[str, list[dict[str, Any]]]:
    tables = {}
    for factor, levels in ablation_tables(steps).items():
        pairs = {level: compared(runs, ours.key, plain.key) for level, (ours, plain) in levels.items()}
        tables[factor] = [{"level": level, **pair} for level, pair in pairs.items() if pair is not None]
    return {factor: rows for factor, rows in tables.items() if rows}


# What the units' bounds behind a run are summed up as.
AGGREGATES: dict[str, Callable[[list[float]], float]] = {
    "mean over units": fmean,
    "least unit": min,
    "last unit": lambda bounds: bounds[-1],
}


def bound_correlations(runs: Runs) -> dict[str, Any]:
    """Of the bound on held-out images, after calibration, with the accuracy on the test images, over single runs.

    Over all runs; inside each network; and of what the term changes in both, over pairs of runs that are alike.
    """
    points = [(row, _bounds(row)) for rows in runs.values() for row in rows.values() if _has_whole_bounds(row)]
    networks = sorted({row["network"] for row, _ in points})
    result: dict[str, Any] = {}
    for name, aggregate in AGGREGATES.items():
        of = [(row["network"], aggregate(bounds), row["test_top1"]) for row, bounds in points]
        changes = list(_changes(runs, aggregate))
        result[name] = {
            "all": correlations(*_columns((bound, accuracy) for _, bound, accuracy in of)),
            **{own: correlations(*_columns((b, a) for network, b, a in of if network == own)) for own in networks},
            "changes by the term": correlations(*_columns(changes)),
        }
    return result


def _columns(pairs: Iterable[tuple[float, float]]) -> tuple[list[float], list[float]]:
    pairs = list(pairs)
    return [first for first, _ in pairs], [second for _, second in pairs]


def _has_whole_bounds(row: dict[str, Any]) -> bool:
    """Whether the bounds are there and of as many images as elsewhere: the number caps them."""
    is_whole = row["calibration_images"] >= HELD_OUT_IMAGES
    return is_whole and all(unit["bound"] is not None for unit in row["units"])


def _bounds(row: dict[str, Any]) -> list[float]:
    return [unit["bound"]["held_out"][1] for unit in row["units"]]


def _changes(runs: Runs, aggregate: Callable[[list[float]], float]) -> Iterable[tuple[float, float]]:
    for key, rows in runs.items():
        for seed, row in rows.items():
            other = runs.get(key.removesuffix("-contrastive"), {}).get(seed) if key.endswith("-contrastive") else None
            if other is None or other["precision"] != row["precision"]:
                continue
            if _has_whole_bounds(row) and _has_whole_bounds(other):
                yield aggregate(_bounds(row)) - aggregate(_bounds(other)), row["test_top1"] - other["test_top1"]


def not_run(runs: Runs, steps: int) -> dict[str, Any]:
    """By part: how many runs are declared, how many are there, and the cells without one, with the reason if any."""
    result = {}
    for part, make in PARTS.items():
        cells: list[Cell] = make(steps)
        seeds = SEEDS[part]
        done = sum(seed in runs.get(cell.key, {}) for cell in cells for seed in seeds)
        missing = {cell.key: cell.missing() or "" for cell in cells if cell.key not in runs}
        result[part] = {"declared": len(cells) * len(seeds), "run": done, "cells_not_run": missing}
    return result


def summarise(runs: Runs, steps: int) -> dict[str, Any]:
    return {
        "steps": steps,
        "cells": {key: cell_summary(rows) for key, rows in runs.items()},
        "hosts": host_table(runs, steps),
        "rates": rate_table(runs, steps),
        "ablations": ablation_rows(runs, steps),
        "biases": bias_table(runs, steps),
        "tuning": tuning_table(runs, steps),
        "correlations": bound_correlations(runs),
        "coverage": not_run(runs, steps),
        **provenance(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.parse_args()
    for steps in steps_in(FOLDER):
        print(write_result(result_name(steps), summarise(read_runs(FOLDER, steps), steps)))


if __name__ == "__main__":
    main()
