"""Detectors of torchvision with random weights: parts quantized one after the other, and the agreement of boxes.

The parts that can be captured (backbone with its pyramid, heads) are quantized; anchors, the choice of boxes and the
suppression of overlaps stay in float around them.  With random weights the scores of all boxes are close together, so
the agreement only shows how the measure falls with the width: what a trained detector loses is not told.  Detections
count from the score on that leaves ``PER_IMAGE`` of the float network for each image.

    python benchmarks/detectors.py        # results/detectors.json; benchmarks/coverage.py table shows it

Some CPU minutes on one core: the images are small, of both detectors all parts are rounded to nearest, and only the
backbone is optimised (error feedback through a head of 12,544 inputs would take longer than all the rest).
"""

from __future__ import annotations

import time
import warnings
from typing import Any

import torch
import torchvision
from torch import Tensor, nn

import clcalib
from clcalib.evaluate.detection import detection_agreement
from common import provenance, write_result
from coverage import prepared

STEPS, IMAGES, SIZE, PER_IMAGE, SEED = 5, 4, 96, 10, 0
PARTS = {
    "ssdlite320_mobilenet_v3_large": ("backbone", "head"),
    "fasterrcnn_mobilenet_v3_large_320_fpn": ("backbone", "rpn.head", "roi_heads.box_head", "roi_heads.box_predictor"),
}
# With random weights no class has a score that counts; the threshold below is one of the scores.
OPTIONS: dict[str, dict[str, Any]] = {
    "fasterrcnn_mobilenet_v3_large_320_fpn": {"box_score_thresh": 0.0, "min_size": SIZE, "max_size": SIZE}
}
NEAREST, FAST = clcalib.recipes.nearest(), clcalib.recipes.fast(steps=STEPS, batch_size=IMAGES)
# What is run: widths, recipe, and how many of the parts are quantized.
RUNS = {
    "W8A8, nearest": (clcalib.Bits(8, 8), NEAREST, None),
    "W4A8, nearest": (clcalib.Bits(4, 8), NEAREST, None),
    "W4A4, nearest": (clcalib.Bits(4, 4), NEAREST, None),
    "W4A4, nearest, backbone": (clcalib.Bits(4, 4), NEAREST, 1),
    f"W4A4, fast with {STEPS} steps, backbone": (clcalib.Bits(4, 4), FAST, 1),
}


def main() -> None:
    warnings.simplefilter("ignore")
    images = torch.rand(IMAGES, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(SEED))
    about = provenance(torchvision=torchvision.__version__, seed=SEED)
    settings = {"steps": STEPS, "images": IMAGES, "pixels": SIZE, "detections_per_image": PER_IMAGE}
    rows = {name: measured(name, parts, images) for name, parts in PARTS.items()}
    write_result("detectors", {"settings": settings, "provenance": about, "detectors": rows})


def measured(name: str, parts: tuple[str, ...], images: Tensor) -> dict[str, Any]:
    torch.manual_seed(SEED)
    detector = torchvision.models.get_model(name, weights=None, weights_backbone=None, **OPTIONS.get(name, {}))
    if name.startswith("ssd"):
        detector.transform.fixed_size = (SIZE, SIZE)  # its anchors are made for any size of map
    model = prepared(detector, images)
    with torch.no_grad():
        floats = model(list(images))
    scores = torch.cat([image["scores"] for image in floats]).sort(descending=True)[0]
    threshold = float(scores[min(len(scores) - 1, PER_IMAGE * len(images))])
    result: dict[str, Any] = {"parts": {}, "agreement": {}}
    for run, (bits, recipe, count) in RUNS.items():
        start = time.process_time()
        whole = quantized(model, parts[:count], images, bits, recipe, result)
        with torch.no_grad():
            found = detection_agreement(floats, whole(list(images)), score_threshold=threshold)
        row = {"matched": found.matched, "overlap": found.overlap, "float_detections": found.count}
        result["agreement"][run] = row | {"cpu_seconds": round(time.process_time() - start)}
        print(name, run, result["agreement"][run], flush=True)
    return result


def quantized(
    model: nn.Module,
    parts: tuple[str, ...],
    images: Tensor,
    bits: clcalib.Bits,
    recipe: clcalib.Recipe,
    result: dict[str, Any],
) -> nn.Module:
    calibration = clcalib.CalibrationSet.from_tensor(images)
    for part in parts:
        done = clcalib.quantize(
            model,
            calibration,
            recipe=recipe,
            bits=bits,
            submodule=part,
            measured_images=0,
            weight_range="minmax",
            activation_range="minmax",
        )
        layers = sum(len(unit.layers) for unit in done.record.units)
        result["parts"][part] = {"units": len(done.record.units), "layers": layers}
        model = done.model
    return model


if __name__ == "__main__":
    main()
