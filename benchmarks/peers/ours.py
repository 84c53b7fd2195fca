"""clcalib itself, run by the same harness."""

from __future__ import annotations

import clcalib
from clcalib.calibrate.recipes import RECIPES
from peers.adapter import Job, Predict, Tensor, main, nn

STEPS = {"qdrop": 2000}


def quantize(model: nn.Module, calibration: Tensor, job: Job) -> Predict:
    recipe = RECIPES[job.method](**({"steps": STEPS[job.method]} if job.method in STEPS else {}))
    result = clcalib.quantize(
        model,
        clcalib.CalibrationSet.from_tensor(calibration),
        recipe=recipe,
        bits=clcalib.Bits(job.weights, job.activations),
        seed=job.seed,
        measured_images=0,
        precision="float32",
    )
    return result.model


if __name__ == "__main__":
    main(quantize, ())
