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
from clcalib.export.deployed import pte_with_codes, require_writer, write_pte
from clcalib.export.program.executorch import PteNetwork
from clcalib.export.roundtrip import compare_codes
from clcalib.quant.modules import ActivationQuantizer
from clcalib.quant.spec import QParams
from clcalib.quant.targets import target_of


def quantized(weights: int = 8) -> clcalib.QuantizationResult:
    calibration = clcalib.CalibrationSet.from_tensor(images())
    recipe, bits = clcalib.recipes.nearest(), clcalib.Bits(weights, 8)
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
@pytest.mark.parametrize("weights", [8, 4, 2])
def test_xnnpack_computes_all_layers_and_gives_what_was_calibrated(weights: int, tmp_path: Path) -> None:
    pytest.importorskip("executorch", reason="the optional package that writes .pte files")
    evaluation = clcalib.EvaluationSet.from_tensor(images(70, seed=5))
    result = quantized(weights)
    assert bool(result.quantized.weight("block.conv1").zero_point.any()) is (weights < 8)
    record = deploy(result, tmp_path / "model.pte", evaluation).record.deployment
    assert record is not None
    assert (record.integer_layers, record.float_layers) == (4, 0)
    assert len(record.tensors) == len(result.quantized.activations)
    assert record.max_code_difference is not None
    assert record.max_code_difference <= 1
    scale = result.quantized.activation("fc:output").scale
    assert isinstance(scale, torch.Tensor)
    assert record.largest_output_difference is not None
    assert record.largest_output_difference <= 1.01 * float(scale)


@pytest.mark.slow
def test_a_wrong_kernel_of_xnnpack_is_found(tmp_path: Path) -> None:
    pytest.importorskip("executorch", reason="the optional package that writes .pte files")
    chain = quantized().quantized
    write_pte(chain, tmp_path / "model.pte")
    file = PteNetwork((tmp_path / "model.pte").read_bytes())
    found = pte_with_codes(chain, file, largest_batch=32)
    broken = chain.copy()
    name = next(name for name in chain.activations.values() if "conv2_output" in name)
    own = chain.chain.module.get_submodule(name)
    assert isinstance(own, ActivationQuantizer)
    broken.replace(name, ActivationQuantizer(QParams(own.scale * 0.9, own.zero_point), own.spec))
    differences = compare_codes(broken.chain, found, found.arrays, images(40), batch_size=32).tensors
    assert next(row.name for row in differences if row.own > 1) == "conv2d_2"
    batch = images(8)
    torch.testing.assert_close(found.with_codes(batch)[-1], file(batch)[-1], rtol=0, atol=0)  # the same kernels
