"""The Python interface on the embedded network, in seconds: quantize with few steps, save, load, compare."""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
from safetensors.torch import load_file

import clcalib
from clcalib.data.sources import load_calibration, load_evaluation
from clcalib.data.transform import Transform
from demo_network import MEAN, STANDARD_DEVIATION, resnet20

FOLDER = Path(__file__).parent / "demo"


def main() -> None:
    model = resnet20().eval()
    model.load_state_dict(load_file(FOLDER / "resnet20.safetensors"))
    transform = Transform(mean=MEAN, standard_deviation=STANDARD_DEVIATION)
    calibration = load_calibration(FOLDER / "calibration.json", transform=transform, count=64)
    evaluation = load_evaluation(FOLDER / "test.json", transform=transform, count=200)

    recipe = clcalib.with_contrastive(clcalib.recipes.qdrop(steps=10), interval=2)
    bits = clcalib.Bits(weights=4, activations=4)
    result = clcalib.quantize(
        model, calibration, recipe=recipe, bits=bits, evaluation=evaluation, measured_images=0, seed=0
    )
    record = result.record
    print(f"float {record.float_top1:.3f}, nearest {record.nearest_top1:.3f}, quantized {record.quantized_top1:.3f}")

    with tempfile.TemporaryDirectory() as folder:
        result.save(folder)
        again = clcalib.load(folder, resnet20())
    same = torch.equal(again(calibration.images), result.model(calibration.images))
    print(f"loaded again: logits {'bit-identical' if same else 'DIFFERENT'}")
    if not same:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
