"""Weights with a zero point against symmetric ones, under the rules of a target whose kernels take either.

    python benchmarks/weight_signs.py run --data DATA    # CIFAR-10; goes on where it was stopped
    python benchmarks/weight_signs.py summary            # benchmarks/results/weight_signs.json

The same network, images, recipe and seed, once with ``asymmetric_below`` as the target has it and once with 0.  The
difference is paired by seed.  Accuracy is that of the simulation, which ``deploy.py`` compares with the runtime.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import time
from pathlib import Path
from typing import Any
from unittest import mock

import torch

import clcalib
from clcalib.calibrate.recipes import RECIPES
from clcalib.files import write_atomically
from clcalib.quant.targets import TARGETS
from common import NETWORKS, RESULTS, all_images, provenance, shuffled

FOLDER, TARGET, RECIPE = RESULTS / "weight_signs", "openvino", "fast"
WIDTHS, SEEDS, IMAGES = ((2, 4), (4, 4), (3, 4), (4, 8)), (0, 1, 2), 1024
PROVENANCE = provenance()


def run(arguments: argparse.Namespace) -> None:
    torch.set_num_threads(1)
    (images, _), tests = (all_images(arguments.data, split) for split in ("train", "test"))
    for weights, activations in WIDTHS:
        for seed in SEEDS:
            for is_symmetric in (True, False):
                form = "symmetric" if is_symmetric else "zero_points"
                path = FOLDER / f"w{weights}a{activations}-{form}-{seed}.json"
                if path.exists():
                    continue
                calibration = clcalib.CalibrationSet.from_tensor(images[shuffled(seed)[:IMAGES]])
                row = run_one((weights, activations), seed, is_symmetric, calibration, tests)
                write_atomically(path, (json.dumps(row, indent=1) + "\n").encode())
                print(f"{path.stem}: {row['top1']} % ({row['nearest_top1']} % nearest)", flush=True)


def run_one(
    widths: tuple[int, int],
    seed: int,
    is_symmetric: bool,
    calibration: clcalib.CalibrationSet,
    tests: tuple[torch.Tensor, torch.Tensor],
) -> dict[str, Any]:
    own = TARGETS[TARGET]
    target = dataclasses.replace(own, asymmetric_below=0 if is_symmetric else own.asymmetric_below)
    start = time.process_time()
    with mock.patch.dict(TARGETS, {TARGET: target}):
        record = clcalib.quantize(
            NETWORKS["resnet20"].load(),
            calibration,
            recipe=RECIPES[RECIPE](),
            bits=clcalib.Bits(*widths),
            target=TARGET,
            seed=seed,
            evaluation=clcalib.EvaluationSet.from_tensor(*tests),
            measured_images=0,
            is_guarded=False,
            is_rehearsed=False,
        ).record
    return {
        "widths": list(widths),
        "seed": seed,
        "is_symmetric": is_symmetric,
        "target": TARGET,
        "recipe": RECIPE,
        "calibration_images": IMAGES,
        "test_images": len(tests[0]),
        "float_top1": round(100 * (record.float_top1 or 0), 2),
        "nearest_top1": round(100 * (record.nearest_top1 or 0), 2),
        "top1": round(100 * (record.quantized_top1 or 0), 2),
        "cpu_seconds": round(time.process_time() - start, 1),
        **PROVENANCE,
    }


def summary() -> None:
    rows = [json.loads(path.read_text()) for path in sorted(FOLDER.glob("*.json"))]
    by_cell = {(tuple(row["widths"]), row["is_symmetric"], row["seed"]): row["top1"] for row in rows}
    cells = []
    for widths in WIDTHS:
        pairs = [[by_cell.get((widths, form, seed)) for form in (True, False)] for seed in SEEDS]
        whole = [(old, new) for old, new in pairs if old is not None and new is not None]
        if len(whole) > 1:
            gains = [new - old for old, new in whole]
            cells.append(
                {
                    "widths": f"W{widths[0]}A{widths[1]}",
                    "seeds": len(whole),
                    "symmetric": round(statistics.mean(old for old, _ in whole), 2),
                    "zero_points": round(statistics.mean(new for _, new in whole), 2),
                    "gains": [round(gain, 2) for gain in gains],
                    "mean_gain": round(statistics.mean(gains), 2),
                    "deviation": round(statistics.stdev(gains), 2),
                }
            )
    text = json.dumps({"target": TARGET, "recipe": RECIPE, "cells": cells, **PROVENANCE}, indent=1) + "\n"
    write_atomically(RESULTS / "weight_signs.json", text.encode())
    for cell in cells:
        print(cell)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    running = commands.add_parser("run", help="the runs that are not there yet")
    running.add_argument("--data", type=Path, required=True, help="folder with CIFAR-10 (clcalib data cifar10)")
    running.set_defaults(command=run)
    commands.add_parser("summary", help="write the JSON").set_defaults(command=lambda arguments: summary())
    arguments = parser.parse_args()
    arguments.command(arguments)


if __name__ == "__main__":
    main()
