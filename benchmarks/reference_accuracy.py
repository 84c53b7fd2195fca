"""Accuracy of the reference code and of clcalib at the same number of steps: ResNet-20, W2A2, all 10,000 test images.

    python benchmarks/reference_accuracy.py run --data DATA
    python benchmarks/reference_accuracy.py summary

The reference is ``reference_step.py``, QDrop at the rates of its code (times 1) and at raised ones, since so few steps
go a short way at rates that were made for 20,000.  Ours are ``fast``, and ``fast`` with trained biases and tuning.
Each run is one JSON in ``benchmarks/results/reference_accuracy/``; one that is there is not repeated.  1,024 training
images to calibrate, chosen by the seed, the same for both; the last 2,000 of the seed's order are the selection.  The
summary, ``reference_accuracy.json``, says what share of the gap between the reference and the float network each method
of ours closes.  Needs the public weights.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import time
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch
from torch import nn

import clcalib
import reference_step as reference
from clcalib.evaluate.accuracy import logits, top1
from clcalib.files import write_atomically
from common import NETWORKS, RESULTS, all_images, provenance, public_weights, shuffled, write_result

FOLDER = "reference_accuracy"
IMAGES, SELECTION, BITS = 1024, 2000, 2
STEPS = (300, 1000)
RAISED = (1, 10, 30)


@dataclasses.dataclass(frozen=True)
class Method:
    """The reference at its rates times ``raised``, or ``fast`` of clcalib, plain or with biases and tuning."""

    name: str
    steps: int
    raised: float | None = None
    is_extended: bool = False

    def quantized(self, model: nn.Module, images: torch.Tensor, seed: int) -> nn.Module:
        if self.raised is not None:
            torch.manual_seed(seed)
            return reference.calibrate(model, images, self.steps, raised=self.raised)
        recipe = clcalib.recipes.fast(steps=self.steps)
        return clcalib.quantize(
            model,
            clcalib.CalibrationSet.from_tensor(images),
            recipe=clcalib.with_tuning(clcalib.with_biases(recipe)) if self.is_extended else recipe,
            bits=clcalib.Bits(BITS, BITS),
            seed=seed,
            measured_images=0,
            precision="float32",
        ).model


def methods() -> list[Method]:
    """All of them, at each number of steps."""
    found = []
    for steps in STEPS:
        found += [Method(f"reference-rates-x{factor}-{steps}", steps, factor) for factor in RAISED]
        found += [Method(f"fast-{steps}", steps), Method(f"fast-biases-tuning-{steps}", steps, is_extended=True)]
    return found


def run_one(method: Method, seed: int, data: Path) -> dict[str, Any]:
    order, model = shuffled(seed), NETWORKS["resnet20"].load()
    (pictures, labels), (tests, test_labels) = all_images(data, "train"), all_images(data, "test")
    start = time.process_time()
    quantized = method.quantized(model, pictures[order[:IMAGES]].clone(), seed)
    seconds, chosen = time.process_time() - start, order[-SELECTION:]
    return {
        **dataclasses.asdict(method),
        "seed": seed,
        "top1": 100 * top1(logits(quantized, tests), test_labels),
        "selection": 100 * top1(logits(quantized, pictures[chosen]), labels[chosen]),
        "float_top1": 100 * top1(logits(model, tests), test_labels),
        "cpu_seconds": round(seconds, 1),
        **provenance(),
    }


def run(arguments: argparse.Namespace) -> None:
    torch.set_num_threads(1)
    for seed in arguments.seeds:
        for method in methods():
            path = RESULTS / FOLDER / f"{method.name}-seed{seed}.json"
            if path.exists() or not any(part in method.name for part in arguments.only):
                continue
            result = run_one(method, seed, arguments.data)
            write_atomically(path, (json.dumps(result) + "\n").encode())
            print(f"{method.name} seed {seed}: {result['top1']:.2f} ({result['cpu_seconds']} CPU s)", flush=True)


def summary(arguments: argparse.Namespace) -> None:
    runs = [json.loads(path.read_text()) for path in sorted((RESULTS / FOLDER).glob("*.json"))]
    rows = {method.name: row(method, [one for one in runs if one["name"] == method.name]) for method in methods()}
    rows = {name: found for name, found in rows.items() if found["seeds"]}
    float_top1 = runs[0]["float_top1"]
    for steps in STEPS:
        own = {name: found for name, found in rows.items() if found["steps"] == steps and found["raised"] is None}
        theirs = {name: found for name, found in rows.items() if found["steps"] == steps and found["raised"]}
        for found in own.values():
            found["gap_closed"] = {
                name: round((found["top1"] - other["top1"]) / (float_top1 - other["top1"]), 3)
                for name, other in theirs.items()
            }
    print(write_result(FOLDER, {"float_top1": float_top1, "methods": rows, **provenance()}))
    for name, found in rows.items():
        closed = "  ".join(f"{100 * share:.0f} % of {other}" for other, share in found.get("gap_closed", {}).items())
        print(
            f"{name:26} {found['top1']:6.2f} +- {found['deviation']:.2f}, selection {found['selection']:.2f}  {closed}"
        )


def row(method: Method, runs: list[dict[str, Any]]) -> dict[str, Any]:
    values = [one["top1"] for one in runs]
    return {
        "steps": method.steps,
        "raised": method.raised,
        "seeds": [one["seed"] for one in runs],
        "top1": round(mean(values), 2) if values else None,
        "deviation": round(stdev(values), 2) if len(values) > 1 else 0.0,
        "all": [round(value, 2) for value in values],
        "selection": round(mean(one["selection"] for one in runs), 2) if runs else None,
        "cpu_seconds": round(mean(one["cpu_seconds"] for one in runs)) if runs else None,
        "commits": sorted({one["commit"] for one in runs}),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    runner = commands.add_parser("run", help="run what is missing")
    runner.add_argument("--data", type=Path, required=True, help="folder with CIFAR-10 (clcalib data cifar10)")
    runner.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    runner.add_argument("--only", nargs="+", default=[""], help="run only methods whose name holds one of these")
    runner.set_defaults(function=run)
    commands.add_parser("summary", help="write reference_accuracy.json").set_defaults(function=summary)
    arguments = parser.parse_args()
    if not public_weights().is_file():
        sys.exit(f"skipped: {public_weights().name} (public weights) is not there")
    arguments.function(arguments)


if __name__ == "__main__":
    main()
