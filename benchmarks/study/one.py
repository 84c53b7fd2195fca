"""One run of the study: a cell and a seed -> a row of numbers, and where the row is kept."""

from __future__ import annotations

import dataclasses
import functools
import json
import time
from pathlib import Path
from typing import Any

import torch

import clcalib
from clcalib.evaluate.accuracy import logits, top1
from clcalib.files import write_atomically
from clcalib.report.record import OnImages, UnitRecord
from common import NETWORKS, RESULTS, all_images, cifar10, provenance, shuffled
from run_files import described, path_of
from study.grid import CALIBRATION_IMAGES, Cell

FOLDER = RESULTS / "study"
HELD_OUT_IMAGES = 128
SELECTION_IMAGES = 2000
PROVENANCE = provenance()  # at the start: the tree may change while the runs go on


@dataclasses.dataclass(frozen=True)
class Images:
    """Training images of one seed: to calibrate, to measure units on, and to select settings by; with their labels."""

    calibration: torch.Tensor
    held_out: torch.Tensor
    selection: tuple[torch.Tensor, torch.Tensor]


@functools.lru_cache(maxsize=1)  # runs go seed by seed
def images_of(data: Path, seed: int) -> Images:
    order = shuffled(seed)
    pictures, _ = cifar10(data, "train", order[: CALIBRATION_IMAGES + HELD_OUT_IMAGES])
    selection = cifar10(data, "train", order[-SELECTION_IMAGES:])
    return Images(pictures[:CALIBRATION_IMAGES], pictures[CALIBRATION_IMAGES:], selection)


@functools.cache
def float_top1(data: Path, network: str) -> float:
    images, labels = all_images(data, "test")
    return 100 * top1(logits(NETWORKS[network].load(), images), labels)


def run_cell(cell: Cell, seed: int, data: Path, precision: str) -> dict[str, Any]:
    """Quantize, and measure on all test images; the selection is of training images that are not calibrated on."""
    images = images_of(data, seed)
    start = time.process_time()
    result = clcalib.quantize(
        NETWORKS[cell.network].load(),
        clcalib.CalibrationSet.from_tensor(images.calibration[: cell.calibration_images]),
        recipe=cell.make(),
        bits=clcalib.Bits(cell.weights, cell.activations),
        seed=seed,
        held_out=clcalib.CalibrationSet.from_tensor(images.held_out),
        measured_images=HELD_OUT_IMAGES,
        is_guarded=False,  # the method as it is
        precision=precision,
    )
    seconds = time.process_time() - start
    stages = result.record.seconds_per_stage
    tests, labels = all_images(data, "test")
    others, other_labels = images.selection
    return {
        "key": cell.key,
        **dataclasses.asdict(cell),
        "settings": result.record.contrastive,
        "seed": seed,
        "recipe": described(cell.make()),
        "test_top1": round(100 * top1(logits(result.model, tests), labels), 2),
        "selection_top1": round(100 * top1(logits(result.model, others), other_labels), 2),
        "float_top1": round(float_top1(data, cell.network), 2),
        "cpu_seconds": round(seconds, 1),
        "seconds_per_stage": {name: round(value, 1) for name, value in stages.items()},
        "units": [_unit(unit) for unit in result.record.units],
        "precision": result.record.precision,
        "kernels": result.record.kernels,
        **PROVENANCE,
    }


def finish(cell: Cell, seed: int, data: Path, nearest: Cell | None, precision: str) -> dict[str, Any]:
    """Run the cell, add the accuracy of nearest rounding, write the row; ``nearest`` is run too where it is not there.

    What two processes compute at once here is the same, so that it does not matter whose file stays.
    """
    row = run_cell(cell, seed, data, precision)
    if nearest is not None:
        place = path_of(nearest.key, seed, FOLDER)
        if not place.exists():
            finish(nearest, seed, data, None, precision)
        row["nearest_top1"] = json.loads(place.read_text())["test_top1"]
    write_atomically(path_of(cell.key, seed, FOLDER), (json.dumps(row) + "\n").encode())
    return row


def _unit(unit: UnitRecord) -> dict[str, Any]:
    return {
        "name": unit.name,
        "error": _pairs(unit.reconstruction_error),
        "bound": None if unit.mutual_information_bound is None else _pairs(unit.mutual_information_bound),
    }


def _pairs(quantity: OnImages) -> dict[str, list[float]]:
    """Before and after, on the calibration and on the held-out images, in five digits."""
    sides = {"calibration": quantity.calibration, "held_out": quantity.held_out}
    pairs = {name: (side.before, side.after) for name, side in sides.items() if side is not None}
    return {name: [float(f"{value:.5g}") for value in pair] for name, pair in pairs.items()}
