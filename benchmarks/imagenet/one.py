"""One run on an ImageNet network: a cell and a seed -> a row of numbers, with what happened to every image."""

from __future__ import annotations

import csv
import dataclasses
import functools
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import clcalib
from clcalib.data.decode import read_image
from clcalib.data.sources import load_calibration
from clcalib.data.transform import Transform
from clcalib.evaluate.accuracy import logits
from common import ASSETS, RESULTS, provenance
from imagenet.networks import NETWORKS
from run_files import described
from study.grid import Cell

FOLDER = RESULTS / "imagenet"
IMAGES = ASSETS / "imagenet"
CHOICE = 1000  # images there are to choose from; what a seed does not calibrate on, it measures the agreement on
MEMORY_BUDGET = "1GB"
BATCH = 25  # images at once in float or quantized inference: more is slower, as it leaves the processor's caches
PROVENANCE = provenance()  # at the start: the tree may change while the runs go on


def reason(network: str) -> str | None:
    """Why the network cannot be run here, or None."""
    files = (NETWORKS[network].weights, IMAGES / "evaluation.csv", IMAGES / "calibration")
    missing = [path.name for path in files if not path.exists()]
    if not NETWORKS[network].weights.is_file():
        missing = [NETWORKS[network].weights.name]
    return f"{missing[0]} is not there" if missing else None


def labelled(name: str, transform: Transform, count: int | None = None) -> tuple[Tensor, Tensor]:
    """The first ``count`` images of ``NAME.csv``, (N, 3, H, W), and their labels (N,)."""
    with (IMAGES / f"{name}.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))[:count]
    images = torch.stack([read_image(IMAGES / name / row["file"], transform) for row in rows])
    return images, torch.tensor([int(row["label"]) for row in rows])


@dataclasses.dataclass(frozen=True)
class Judged:
    """The evaluation images of one network, their labels, and the classes that the float network names."""

    images: Tensor
    labels: Tensor
    predictions: Tensor


@functools.lru_cache(maxsize=1)
def judged(network: str, count: int | None = None) -> Judged:
    own = NETWORKS[network]
    images, labels = labelled("evaluation", own.evaluation_transform, count)
    return Judged(images, labels, predicted(own.load(), images))


def predicted(model: torch.nn.Module, images: Tensor) -> Tensor:
    return logits(model, images, batch_size=BATCH).argmax(1)


def packed(flags: Tensor) -> str:
    """One bit for each image, eight in two hexadecimal digits, the first image in the highest."""
    return np.packbits(flags.numpy()).tobytes().hex()


def unpacked(text: str, count: int) -> np.ndarray:
    """What ``packed`` was given: (count,) of 0 and 1."""
    return np.unpackbits(np.frombuffer(bytes.fromhex(text), np.uint8), count=count)


def run_cell(cell: Cell, seed: int, precision: str, spill_folder: Path | None = None) -> dict[str, Any]:
    """Quantize, and see at each evaluation image whether it is right and whether the float network says the same.

    The seed chooses the calibration images and is that of all random streams.
    """
    network = NETWORKS[cell.network]
    evaluation = judged(cell.network)
    every = load_calibration(IMAGES / "calibration", transform=network.transform, count=CHOICE, seed=seed).images
    own, others = every[: cell.calibration_images], every[cell.calibration_images :]
    model = network.load()
    start = time.process_time()
    result = clcalib.quantize(
        model,
        clcalib.CalibrationSet.from_tensor(own),
        recipe=cell.make(),
        bits=clcalib.Bits(cell.weights, cell.activations),
        seed=seed,
        measured_images=0,
        is_guarded=False,  # the method as it is
        precision=precision,
        memory_budget=MEMORY_BUDGET,
        spill_folder=spill_folder,
    )
    seconds = time.process_time() - start
    record = result.record
    predictions = predicted(result.model, evaluation.images)
    kept, held_out = (predicted(result.model, images) == predicted(model, images) for images in (own, others))
    right, float_right = (names == evaluation.labels for names in (predictions, evaluation.predictions))
    agrees = predictions == evaluation.predictions
    return {
        "key": cell.key,
        **dataclasses.asdict(cell),
        "settings": record.contrastive,
        "seed": seed,
        "recipe": described(cell.make()),
        "top1": percent(right),
        "float_top1": percent(float_right),
        "agreement": percent(agrees),
        "calibration_agreement": percent(kept),
        "held_out_agreement": percent(held_out) if len(others) else None,
        "evaluation_images": len(right),
        "right": packed(right),
        "float_right": packed(float_right),
        "agrees": packed(agrees),
        "cpu_seconds": round(seconds, 1),
        "seconds_per_stage": {name: round(value, 1) for name, value in record.seconds_per_stage.items()},
        "peak_memory_bytes": record.peak_memory_bytes,
        "unit_errors": [
            [float(f"{value:.5g}") for value in (error.calibration.before, error.calibration.after)]
            for error in (unit.reconstruction_error for unit in record.units)
        ],
        "warnings": list(record.warnings),
        "precision": record.precision,
        "kernels": record.kernels,
        **PROVENANCE,
    }


def percent(flags: Tensor) -> float:
    return round(100 * float(flags.double().mean()), 2)
