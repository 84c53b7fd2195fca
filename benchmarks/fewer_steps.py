"""How few steps reach QDrop's accuracy at 2,000: ResNet-20, CIFAR-10, W2A2.

    python benchmarks/fewer_steps.py run --data DATA --grid rates
    python benchmarks/fewer_steps.py summary

A grid is a list of cells (``fewer_steps_grids.py``); each run (cell and seed) is one JSON line in
``benchmarks/results/fewer_steps/GRID/``, and a run that is there is not repeated.  Settings are *selected* by the
accuracy on 5,000 training images that are not calibrated on (the float network was trained on them, so their level is
too high; their order is what counts).  The test images are read by the grids ``final`` and ``curve`` alone, with seeds
that selected nothing.  Needs the public weights.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import sys
import time
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import torch

import clcalib
from clcalib.evaluate.accuracy import logits, top1
from clcalib.files import write_atomically
from common import RESULTS, all_images, network, provenance, public_weights, shuffled, write_result
from fewer_steps_grids import CALIBRATION_IMAGES, GRIDS, TESTED, Cell

SELECTION_IMAGES = 5000
PROVENANCE = provenance()  # at the start: the tree may change while the runs go on


def parts(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The numbers of the training images that are calibrated on and of those that settings are selected on."""
    order = shuffled(seed)
    return order[:CALIBRATION_IMAGES], order[-SELECTION_IMAGES:]


def run_cell(cell: Cell, seed: int, data: Path, is_final: bool) -> dict[str, Any]:
    """One run; the test images are looked at in the final grid only."""
    pictures, labels = all_images(data, "train")
    chosen, others = parts(seed)
    start = time.process_time()
    result = clcalib.quantize(
        network(public_weights()),
        cell.calibration(pictures[chosen], seed),
        recipe=cell.make(),
        bits=clcalib.Bits(2, cell.activations),
        seed=seed,
        precision=cell.precision,
        cache_precision=cell.cache_precision,
        measured_images=0,
        is_guarded=False,  # the method as it is
    )
    seconds = time.process_time() - start
    test = None
    if is_final:
        tests, test_labels = all_images(data, "test")
        test = 100 * top1(logits(result.model, tests), test_labels)
    selection = 100 * top1(logits(result.model, pictures[others]), labels[others])
    return row(cell, seed, selection, seconds) | {"test_top1": test}


def row(cell: Cell, seed: int, selection: float, seconds: float) -> dict[str, Any]:
    """What is written down about a run."""
    return {
        "cell": cell.name,
        "settings": dataclasses.asdict(cell),
        "seed": seed,
        "selection_top1": selection,
        "test_top1": None,
        "cpu_seconds": round(seconds, 1),
        **PROVENANCE,
    }


def run(arguments: argparse.Namespace) -> None:
    torch.set_num_threads(1)
    folder = RESULTS / "fewer_steps" / arguments.grid
    cells = [cell for cell in GRIDS[arguments.grid]() if any(fnmatch(cell.name, name) for name in arguments.only)]
    for seed in arguments.seeds:
        for cell in cells:
            path = folder / f"{cell.name}-seed{seed}.json"
            if path.exists():
                continue
            row = run_cell(cell, seed, arguments.data, arguments.grid in TESTED)
            write_atomically(path, (json.dumps(row) + "\n").encode())
            print(f"{cell.name} seed {seed}: {row['selection_top1']:.2f} ({row['cpu_seconds']} CPU s)", flush=True)


def summary(arguments: argparse.Namespace) -> None:
    grids: dict[str, dict[str, Any]] = {}
    for grid, cells in GRIDS.items():
        runs = [json.loads(path.read_text()) for path in sorted((RESULTS / "fewer_steps" / grid).glob("*.json"))]
        by_cell = {cell.name: [run for run in runs if run["cell"] == cell.name] for cell in cells()}
        grids[grid] = {name: summarise(rows) for name, rows in by_cell.items() if rows}
    print(write_result("fewer_steps", {"grids": grids, **PROVENANCE}))
    for grid, summaries in grids.items():
        for name, row in summaries.items():
            print(f"{grid:10} {name:32} {row['selection_top1']} test {row['test_top1']} ({row['cpu_seconds']} CPU s)")


def summarise(runs: list[dict[str, Any]]) -> dict[str, Any]:
    tested = [run["test_top1"] for run in runs if run["test_top1"] is not None]
    return {
        "settings": runs[0]["settings"],
        "seeds": [run["seed"] for run in runs],
        "selection_top1": [round(run["selection_top1"], 2) for run in runs],
        "selection": spread([run["selection_top1"] for run in runs]),
        "test_top1": [round(value, 2) for value in tested],
        "test": spread(tested) if tested else None,
        "cpu_seconds": round(sum(run["cpu_seconds"] for run in runs) / len(runs), 1),
        "commits": sorted({run["commit"] for run in runs}),
        "machines": sorted({f"torch {run['torch']}, {run['machine']}" for run in runs}),
    }


def spread(values: list[float]) -> dict[str, float | int]:
    """Mean, deviation between seeds (0 for a single one) and number of seeds."""
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return {"mean": round(statistics.fmean(values), 2), "deviation": round(deviation, 2), "n": len(values)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    runner = commands.add_parser("run", help="run what is missing of a grid")
    runner.add_argument("--data", type=Path, required=True, help="folder with CIFAR-10 (clcalib data cifar10)")
    runner.add_argument("--grid", choices=GRIDS, required=True)
    runner.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    runner.add_argument("--only", nargs="+", default=["*"], help="run only these cells; * stands for anything")
    runner.set_defaults(function=run)
    commands.add_parser("summary", help="write fewer_steps.json").set_defaults(function=summary)
    arguments = parser.parse_args()
    if not public_weights().is_file():
        sys.exit(f"skipped: {public_weights().name} (public weights) is not there")
    arguments.function(arguments)


if __name__ == "__main__":
    main()
