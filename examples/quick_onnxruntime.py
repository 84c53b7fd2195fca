"""Deployment to ONNX Runtime: calibrated under its rules, written, proved code by code, loaded and timed.

python examples/quick_onnxruntime.py      # needs onnx and onnxruntime: pip install "clcalib[onnxruntime]"
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import clcalib
from clcalib.data.sources import load_calibration, load_evaluation
from clcalib.deployment import deploy
from clcalib.export.runtimes import session
from clcalib.processor import adds_in_16_bits
from demo_images import CALIBRATION, TEST, TRANSFORM, trained_resnet20


def main() -> None:
    model = trained_resnet20()
    calibration = load_calibration(CALIBRATION, transform=TRANSFORM, count=64)
    evaluation = load_evaluation(TEST, transform=TRANSFORM, count=128)
    bits, recipe = clcalib.Bits(weights=8, activations=8), clcalib.recipes.nearest()
    # Without VNNI a processor's sums overflow with all 8 bits; name the target of the processor that is deployed to.
    target = "onnxruntime-avx2" if adds_in_16_bits() else "onnxruntime"
    result = clcalib.quantize(
        model,
        calibration,
        recipe=recipe,
        bits=bits,
        target=target,
        evaluation=evaluation,
        measured_images=0,
    )
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "model.onnx")
        result = deploy(result, path, evaluation)
        found = result.record.deployment
        assert found is not None
        print(f"target {target}, {path.name}: {found.file_bytes:,} bytes, {found.runtime}")
        print(f"layers in integers: {found.integer_layers}, in float: {found.float_layers}")
        print(f"largest difference of a code: {found.max_code_difference}; same class: {found.agreement:.1%}")
        print(f"top-1 on {found.images} images: simulated {found.top1_simulated:.1%}, runtime {found.top1_runtime:.1%}")
        outputs = session(path, threads=1)(evaluation.images[:4].numpy())
        for name, values in outputs.items():
            print(f"called as any ONNX file: {name} {values.shape}, classes {values.argmax(1).tolist()}")
    if found.float_layers or found.max_code_difference is None or found.max_code_difference > 1:
        raise SystemExit("the runtime does not compute what was calibrated")


if __name__ == "__main__":
    main()
