"""A CIFAR network: the embedded ResNet-20 at 4 bits, with nearest rounding and with ``fast``, unit by unit.

    python examples/quick_cifar.py

Few images and few steps, so that it ends in seconds; ``make demo`` is the longer form.
"""

from __future__ import annotations

import clcalib
from clcalib.data.sources import load_calibration, load_evaluation
from demo_images import CALIBRATION, TEST, TRANSFORM, trained_resnet20


def main() -> None:
    model = trained_resnet20()
    calibration = load_calibration(CALIBRATION, transform=TRANSFORM, count=64)
    evaluation = load_evaluation(TEST, transform=TRANSFORM, count=200)
    result = clcalib.quantize(
        model,
        calibration,
        recipe=clcalib.recipes.fast(steps=10),
        bits=clcalib.Bits(weights=3, activations=3),
        evaluation=evaluation,
        measured_images=0,
    )
    record = result.record
    print("unit        error with nearest rounding -> after 10 steps")
    for unit in record.units:
        error = unit.reconstruction_error.calibration
        print(f"{unit.name:10}  {error.before:8.3f} -> {error.after:8.3f}  ({unit.kept})")
    print(f"top-1 on {record.evaluation_images} images, W3A3:", end=" ")
    print(f"float {record.float_top1:.1%}, nearest {record.nearest_top1:.1%}, fast {record.quantized_top1:.1%}")


if __name__ == "__main__":
    main()
