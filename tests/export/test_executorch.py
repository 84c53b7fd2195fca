"""Files of ExecuTorch: XNNPACK computes all layers with integers and gives what the simulation gives."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from tests.tiny import images, tiny

import clcalib
from clcalib.deployment import deploy
from clcalib.errors import MissingPackageError
from clcalib.export.deployed import require_writer
from clcalib.quant.targets import target_of


def quantized() -> clcalib.QuantizationResult:
    calibration = clcalib.CalibrationSet.from_tensor(images())
    recipe, bits = clcalib.recipes.nearest(), clcalib.Bits(8, 8)
    settings = {"target": "executorch", "measured_images": 0, "is_rehearsed": False}
    return clcalib.quantize(tiny(), calibration, recipe=recipe, bits=bits, **settings)  # type: ignore[arg-type]


def test_results_of_all_layers_are_quantized() -> None:
    rows = {row.layer: row.reason for row in quantized().policy}
    assert rows["fc:output"] == "result of fc"
    assert rows["block.conv2:output"] == "result of block.conv2"


def test_without_executorch_it_is_said_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "executorch", None)
    for name in [name for name in sys.modules if name.startswith("executorch.")]:
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(MissingPackageError, match=r'pip install "clcalib\[executorch\]"'):
        require_writer(target_of("executorch"))


@pytest.mark.slow
def test_xnnpack_computes_all_layers_and_gives_what_was_calibrated(tmp_path: Path) -> None:
    pytest.importorskip("executorch", reason="the optional package that writes .pte files")
    evaluation = clcalib.EvaluationSet.from_tensor(images(70, seed=5))
    result = quantized()
    record = deploy(result, tmp_path / "model.pte", evaluation).record.deployment
    assert record is not None
    assert (record.integer_layers, record.float_layers) == (4, 0)
    assert record.max_code_difference is None
    scale = result.quantized.activation("fc:output").scale
    assert isinstance(scale, torch.Tensor)
    assert record.largest_output_difference is not None
    assert record.largest_output_difference <= 1.01 * float(scale)
