"""Accuracy of the host methods and of the contrastive term: ResNet-20, CIFAR-10, all 10,000 test images.

    python benchmarks/accuracy.py run --data DATA --grid hosts --part 0/2
    python benchmarks/accuracy.py summary

A grid is a list of cells; every cell is run with every seed, each run is one JSON line in
``benchmarks/results/accuracy/GRID/``, and a run that is there already is not repeated, so the script can be stopped and
started again at any time.  The calibration images are 1,024 training images, chosen by the seed; the test images are
used for nothing but the numbers.  Needs the public weights, which are no part of the project; says so where they are
missing.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import sys
import time
from pathlib import Path
from typing import Any

import torch

import clcalib
from clcalib.calibrate.recipes import RECIPES
from clcalib.evaluate.accuracy import agreement, logits, top1
from clcalib.files import write_atomically
from common import RESULTS, cifar10, network, provenance, public_weights, shuffled, write_result

CALIBRATION_IMAGES = 1024
HELD_OUT_IMAGES = 256
EVERY_FOURTH = {"interval": 4, "images": "all"}  # steps with the contrastive term, on whole batches


@dataclasses.dataclass(frozen=True)
class Cell:
    """One method at one pair of widths."""

    name: str
    recipe: str
    weights: int
    activations: int
    steps: int
    options: dict[str, Any] = dataclasses.field(default_factory=dict)
    contrastive: dict[str, Any] | None = None
    setting: str = "qdrop"
    precision: str = "auto"

    def make(self) -> clcalib.Recipe:
        options = {} if self.recipe == "nearest" else {"steps": self.steps, **self.options}
        recipe = RECIPES[self.recipe](**options)
        return recipe if self.contrastive is None else clcalib.with_contrastive(recipe, **self.contrastive)


def hosts() -> list[Cell]:
    """The hosts and the contrastive term on QDrop, at W2A2 and W2A4 and the same steps and rates."""
    cells = []
    for activations in (2, 4):
        widths = f"w2a{activations}"
        cells += [
            Cell(f"{widths}-nearest", "nearest", 2, activations, 0),
            Cell(f"{widths}-qdrop", "qdrop", 2, activations, 2000),
            Cell(f"{widths}-qdrop-contrastive", "qdrop", 2, activations, 2000, contrastive=EVERY_FOURTH),
            Cell(f"{widths}-brecq", "brecq", 2, activations, 2000),
            Cell(f"{widths}-adaround", "adaround", 2, activations, 2000),
        ]
    return cells


def contrastive_forms() -> list[Cell]:
    """The forms of the contrastive term, on QDrop at W2A2 and few steps."""
    # Written against the first default temperature, 0.1, so that every form says what it is.
    light = {"weight": 0.1}
    forms: dict[str, dict[str, Any] | None] = {
        "plain": None,
        "info_nce": {},
        "info_nce-weight-3": {"weight": 3.0},
        "info_nce-weight-0.3": {"weight": 0.3},
        "info_nce-weight-0.1": light,
        "info_nce-weight-0.03": {"weight": 0.03},
        "info_nce-logits": {"read": "logits"},
        "info_nce-weight-0.1-every-step": {**light, "interval": 1},
        "info_nce-weight-0.1-temperature-0.5": {**light, "temperature": 0.5},
        "info_nce-weight-0.1-temperature-1": {**light, "temperature": 1.0},
        "info_nce-weight-0.3-temperature-0.5": {"weight": 0.3, "temperature": 0.5},
        "info_nce-weight-0.3-temperature-1": {"weight": 0.3, "temperature": 1.0},
        "info_nce-weight-1-temperature-1": {"weight": 1.0, "temperature": 1.0},
        "info_nce-weight-0.1-temperature-0.5-same-prediction": {
            **light,
            "temperature": 0.5,
            "false_negatives": "same_prediction",
        },
        "info_nce-weight-0.1-logits": {**light, "read": "logits"},
        "info_nce-weight-0.1-centred": {**light, "critic": "centred_cosine"},
        "info_nce-weight-0.1-same-prediction": {**light, "false_negatives": "same_prediction"},
        "crd_nce": {"loss": "crd_nce"},
        "crd_nce-weight-0.1": {**light, "loss": "crd_nce"},
        "crd_nce-same-prediction": {"loss": "crd_nce", "false_negatives": "same_prediction"},
        "normalised_crd_nce-weight-0.1": {**light, "loss": "normalised_crd_nce"},
        "normalised_crd_nce-weight-0.1-centred": {**light, "loss": "normalised_crd_nce", "critic": "centred_cosine"},
        "sigmoid_nce-weight-0.1": {**light, "loss": "sigmoid_nce"},
    }
    return [
        Cell(
            name,
            "qdrop",
            2,
            2,
            200,
            contrastive=None if form is None else {"share": 1.0, **EVERY_FOURTH, "temperature": 0.1, **form},
        )
        for name, form in forms.items()
    ]


def precisions() -> list[Cell]:
    """Convolutions in float32 and in bfloat16, all else equal."""
    return [
        Cell(f"w2a{activations}-qdrop-{precision}", "qdrop", 2, activations, 2000, precision=precision)
        for activations in (2, 4)
        for precision in ("float32", "bfloat16")
    ]


def rates() -> list[Cell]:
    """The rounding rate at few steps, on plain QDrop at W2A2."""
    return [
        Cell(f"rate-{rate}-steps-{steps}", "qdrop", 2, 2, steps, options={"rounding_rate": rate})
        for steps in (200,)
        for rate in (1e-3, 3e-3, 1e-2, 3e-2)
    ]


GRIDS = {"hosts": hosts, "contrastive": contrastive_forms, "rates": rates, "precision": precisions}


@functools.cache
def test_set(data: Path) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """All test images, their labels, and the float network's outputs."""
    images, labels = cifar10(data, "test")
    return images, labels, logits(network(public_weights()), images)


def run_cell(cell: Cell, seed: int, data: Path, measured_images: int) -> dict[str, Any]:
    """One run; images of the training set that are not calibrated on measure the units' held-out errors."""
    model = network(public_weights())
    order = shuffled(seed)
    images, _ = cifar10(data, "train", order[:CALIBRATION_IMAGES])
    unseen, _ = cifar10(data, "train", order[CALIBRATION_IMAGES : CALIBRATION_IMAGES + HELD_OUT_IMAGES])
    start = time.process_time()
    result = clcalib.quantize(
        model,
        clcalib.CalibrationSet.from_tensor(images),
        recipe=cell.make(),
        bits=clcalib.Bits(cell.weights, cell.activations),
        setting=cell.setting,
        seed=seed,
        held_out=clcalib.CalibrationSet.from_tensor(unseen),
        measured_images=measured_images,
        is_guarded=False,  # the method as it is
        precision=cell.precision,
    )
    seconds = time.process_time() - start
    tests, labels, floats = test_set(data)
    outputs = logits(result.model, tests)
    return {
        "cell": cell.name,
        "settings": dataclasses.asdict(cell),
        "seed": seed,
        "top1": 100 * top1(outputs, labels),
        "float_top1": 100 * top1(floats, labels),
        "agreement": 100 * agreement(outputs, floats),
        "calibration_agreement": 100 * agreement(logits(result.model, images), logits(model, images)),
        "cpu_seconds": round(seconds, 1),
        "units": [unit.model_dump() for unit in result.record.units],
        "precision": result.record.precision,
        **provenance(),
    }


def is_chosen(name: str, arguments: argparse.Namespace) -> bool:
    """Whether the flags ask for the cell."""
    return any(part in name for part in arguments.only) and not any(part in name for part in arguments.but)


def run(arguments: argparse.Namespace) -> None:
    torch.set_num_threads(1)
    index, parts = (int(number) for number in arguments.part.split("/"))
    folder = RESULTS / "accuracy" / arguments.grid
    cells = [cell for cell in GRIDS[arguments.grid]() if is_chosen(cell.name, arguments)]
    jobs = [(seed, cell) for seed in arguments.seeds for cell in cells]
    for seed, cell in jobs[index::parts]:
        path = folder / f"{cell.name}-seed{seed}.json"
        if path.exists():
            continue
        result = run_cell(cell, seed, arguments.data, HELD_OUT_IMAGES if arguments.grid == "hosts" else 0)
        write_atomically(path, (json.dumps(result) + "\n").encode())
        print(f"{cell.name} seed {seed}: {result['top1']:.2f} % ({result['cpu_seconds']} CPU s)", flush=True)


def summary(arguments: argparse.Namespace) -> None:
    grids: dict[str, Any] = {}
    for grid in GRIDS:
        runs = [json.loads(path.read_text()) for path in sorted((RESULTS / "accuracy" / grid).glob("*.json"))]
        cells: dict[str, dict[int, dict[str, Any]]] = {}
        for one in runs:
            cells.setdefault(one["cell"], {})[one["seed"]] = one
        grids[grid] = {name: summarise(by_seed, base_of(name, cells)) for name, by_seed in cells.items()}
    print(write_result("accuracy", {"grids": grids, **provenance()}))
    for grid, rows in grids.items():
        print(grid)
        for name, row in rows.items():
            print(f"  {name:40} {row['mean']:6.2f} +- {row['deviation']:.2f} (n={row['n']}) gain {row['paired_gain']}")


def base_of(name: str, cells: dict[str, dict[int, dict[str, Any]]]) -> dict[int, dict[str, Any]]:
    """What a cell is compared with: the plain host, or float32."""
    if name.endswith("-contrastive"):
        return cells.get(name.removesuffix("-contrastive"), {})
    if name.endswith("-bfloat16"):
        return cells.get(name.removesuffix("bfloat16") + "float32", {})
    return cells.get("plain", {})


def summarise(by_seed: dict[int, dict[str, Any]], base: dict[int, dict[str, Any]]) -> dict[str, Any]:
    values = torch.tensor([run["top1"] for run in by_seed.values()], dtype=torch.float64)
    shared = sorted(set(by_seed) & set(base)) if base is not by_seed else []
    gains = [round(by_seed[seed]["top1"] - base[seed]["top1"], 2) for seed in shared]
    return {
        "n": len(values),
        "seeds": sorted(by_seed),
        "mean": round(float(values.mean()), 2),
        "deviation": round(float(values.std()) if len(values) > 1 else 0.0, 2),
        "top1": [round(by_seed[seed]["top1"], 2) for seed in sorted(by_seed)],
        "paired_gains": gains,
        "paired_gain": round(sum(gains) / len(gains), 2) if gains else None,
        "calibration_agreement": round(sum(r["calibration_agreement"] for r in by_seed.values()) / len(by_seed), 2),
        "agreement": round(sum(r["agreement"] for r in by_seed.values()) / len(by_seed), 2),
        "float_top1": next(iter(by_seed.values()))["float_top1"],
        "cpu_seconds": round(sum(r["cpu_seconds"] for r in by_seed.values()) / len(by_seed)),
        "commits": sorted({run["commit"] for run in by_seed.values()}),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    runner = commands.add_parser("run", help="run what is missing of a grid")
    runner.add_argument("--data", type=Path, required=True, help="folder with CIFAR-10 (clcalib data cifar10)")
    runner.add_argument("--grid", choices=GRIDS, required=True)
    runner.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    runner.add_argument("--part", default="0/1", help="K/N: every N-th job from K on, to use several cores")
    runner.add_argument("--only", nargs="+", default=[""], help="run only cells whose name holds one of these")
    runner.add_argument("--but", nargs="+", default=[], help="leave out cells whose name holds one of these")
    runner.set_defaults(function=run)
    commands.add_parser("summary", help="write accuracy.json").set_defaults(function=summary)
    arguments = parser.parse_args()
    if not public_weights().is_file():
        sys.exit(f"skipped: {public_weights().name} (public weights) is not there")
    arguments.function(arguments)


if __name__ == "__main__":
    main()
