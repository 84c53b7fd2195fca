"""A vision transformer: attention's products are quantized too, and options of the literature are to be had.

    python examples/quick_vit.py

A small ViT of timm with **random weights** on the embedded images, so there is no accuracy here, only errors of units
and the agreement with the float network.
"""

from __future__ import annotations

import timm
import torch

import clcalib
from clcalib.data.sources import load_calibration
from demo_images import CALIBRATION, TRANSFORM


def main() -> None:
    torch.manual_seed(0)
    shape = {"img_size": 32, "patch_size": 8, "embed_dim": 64, "depth": 1, "num_heads": 2, "num_classes": 10}
    model = timm.create_model("vit_tiny_patch16_224", pretrained=False, **shape).eval()
    calibration = load_calibration(CALIBRATION, transform=TRANSFORM, count=48)
    chain = clcalib.capture(model, calibration.images[:2])
    print("products of attention:", ", ".join(chain.products))

    options = {
        "plain": {},
        "options": {"softmax_grid": "log_sqrt2", "is_layer_norm_reparameterized": True},
    }
    for name, arguments in options.items():
        result = clcalib.quantize(
            model,
            calibration,
            recipe=clcalib.recipes.nearest(),
            bits=clcalib.Bits(weights=8, activations=4),
            evaluation=clcalib.EvaluationSet.from_tensor(calibration.images),
            measured_images=0,
            **arguments,
        )
        print(f"nearest, W8A4, {name}: same class on {result.record.agreement:.1%} of the images")

    recipe = clcalib.recipes.fast(steps=10)
    result = clcalib.quantize(model, calibration, recipe=recipe, bits=clcalib.Bits(3, 8), measured_images=0)
    for unit in result.record.units:
        error = unit.reconstruction_error.calibration
        print(f"fast, W3A8, {unit.name:12} error {error.before:.2e} -> {error.after:.2e} ({unit.kept})")


if __name__ == "__main__":
    main()
