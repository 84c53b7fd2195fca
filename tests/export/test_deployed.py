"""Networks calibrated for a target: integer kernels do the work, and give the codes that were simulated."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.processors import here
from tests.tiny import tiny
from torch import Tensor, nn
from torch.nn import functional as F

import clcalib
from clcalib.deployment import deploy
from clcalib.errors import (
    ArgumentError,
    CheckpointError,
    KernelDifferenceWarning,
    RuntimeMissingWarning,
    UnsupportedOperatorError,
)
from clcalib.export.checkpoint import load_chain
from clcalib.export.deployed import onnx_rules, write_float, write_onnx
from clcalib.export.onnx.emit import emit, round_biases, with_rounded_biases
from clcalib.export.onnx.quantizers import stored_weight
from clcalib.export.roundtrip import compare_codes, with_codes
from clcalib.export.runtimes import LayerCounts, integer_report, session
from clcalib.pipeline import QuantizationResult
from clcalib.quant.modules import ActivationQuantizer
from clcalib.quant.spec import QParams
from clcalib.quant.targets import TARGETS, target_of

IMAGES = torch.randn(64, 3, 12, 12, generator=torch.Generator().manual_seed(3))


class Moves(nn.Module):
    """What may stand between a quantizer and its reader: pools, pads, slices, shuffles, means, clamps of every kind."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.depthwise = nn.Conv2d(8, 8, 3, stride=2, groups=8)
        self.narrow = nn.Conv2d(8, 8, 1)
        self.wide = nn.Conv2d(16, 8, 1)
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu6(self.stem(x))
        x = F.max_pool2d(x, 2)
        y = F.hardtanh(self.depthwise(F.pad(x, (0, 1, 0, 1))), -0.5, 0.7)
        z = F.pad(x[:, :4, ::2, ::2], (0, 0, 0, 0, 2, 2))
        y = F.relu(self.narrow(y) + z)
        y = F.interpolate(y, scale_factor=2, mode="nearest")[:, :, 1:-1:2, ::2]
        y = F.relu(self.wide(torch.cat([y, z.flip(1)[:, :, : y.shape[2]] * 0.5], 1)))
        return self.head(y.mean((2, 3)))


def calibrated(model: nn.Module, target: str, weights: int, activations: int) -> QuantizationResult:
    images = clcalib.CalibrationSet.from_tensor(IMAGES)
    bits = clcalib.Bits(weights, activations)
    return clcalib.quantize(model, images, recipe=clcalib.recipes.nearest(), bits=bits, target=here(target))


def moves() -> nn.Module:
    torch.manual_seed(1)
    return Moves().eval()


@pytest.mark.parametrize("target", ["onnxruntime", "openvino"])
@pytest.mark.parametrize("widths", [(8, 8), (4, 4), (2, 3)], ids=["w8a8", "w4a4", "w2a3"])
@pytest.mark.parametrize("build", [tiny, moves], ids=["tiny", "moves"])
def test_codes_are_those_that_were_simulated(
    build: type[nn.Module], widths: tuple[int, int], target: str, tmp_path: Path
) -> None:
    quantized = calibrated(build(), target, *widths).quantized
    path = tmp_path / "model.onnx"
    emitted = write_onnx(quantized, path, TARGETS[target])
    found = compare_codes(quantized.chain, emitted, session(with_codes(emitted), target, threads=1), IMAGES)
    assert set(emitted.codes) == {str(n) for n in quantized.chain.module.graph.nodes if n.target in
                                  quantized.activations.values()}  # fmt: skip
    assert found.max_code_difference <= 1
    assert max(row.own_share for row in found.tensors) < 1e-3
    plain = session(path, target, threads=1)(IMAGES.numpy())["logits"]
    assert np.argmax(plain, 1).tolist() == found.simulated.argmax(1).tolist()


@pytest.mark.parametrize("widths", [(8, 8), (4, 4), (2, 3)], ids=["w8a8", "w4a4", "w2a3"])
def test_integer_kernels_do_all_the_work_in_onnxruntime(widths: tuple[int, int], tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    write_onnx(calibrated(tiny(), "onnxruntime", *widths).quantized, path, TARGETS["onnxruntime"])
    counts = LayerCounts.of(integer_report(path))
    assert (counts.integer_layers, counts.float_layers, counts.float_operations) == (4, 0, 0)


class Rows(nn.Module):
    """Linear layers of images' rows, whose weights are written transposed, and a convolution of few channels."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.rows, self.last = nn.Conv2d(3, 8, 3, padding=1), nn.Linear(8, 16), nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.rows(F.relu(self.conv(x)).flatten(2).mT))
        return self.last(x.mean(1))


@pytest.mark.parametrize("target", ["onnxruntime", "openvino"])
@pytest.mark.parametrize("bits", [2, 4, 7])
def test_zero_points_of_weights_are_taken_off_before_a_kernel_sees_them(bits: int, target: str, tmp_path: Path) -> None:
    if bits == 7 and here(target) != target:
        pytest.skip("codes of 7 bits less a zero point have 8, and sums overflow on this processor")
    torch.manual_seed(2)
    images, widths = clcalib.CalibrationSet.from_tensor(IMAGES), clcalib.Bits(bits, 8)
    settings = {"recipe": clcalib.recipes.nearest(), "target": here(target), "first_last_bits": "same"}
    quantized = clcalib.quantize(Rows().eval(), images, bits=widths, **settings).quantized  # type: ignore[arg-type]
    for layer in ("conv", "rows", "last"):
        weight = quantized.weight(layer)
        assert len(set(weight.zero_point.flatten().tolist())) > 1
        found = stored_weight(weight, onnx_rules(TARGETS[target]))
        assert not found.zero_point.any()
        assert (found.offset is not None) == (bits == 4)  # -15 to 15 does not fit into 4 bits, -7 to 7 does
        assert int(found.codes.abs().max()) <= 1 << (found.bits - 1)
        codes = found.codes if found.offset is None else found.codes - found.offset
        assert torch.equal(codes * weight.scale, weight())
    path = tmp_path / "model.onnx"
    emitted = write_onnx(quantized, path, TARGETS[target])
    in_float = [row.name for row in integer_report(path, target) if row.has_weights and not row.is_integer]
    assert in_float == ([] if target == "onnxruntime" else ["rows"])  # as with weights of 8 bits
    compared = compare_codes(quantized.chain, emitted, session(with_codes(emitted), target, threads=1), IMAGES)
    assert compared.max_code_difference <= 1
    assert max(row.own_share for row in compared.tensors) < 1e-3


def test_clamps_and_narrow_grids_are_clips_of_codes_and_moves_move_them() -> None:
    quantized = calibrated(moves(), "onnxruntime", 4, 4).quantized
    nodes = emit(quantized.chain, rules=onnx_rules(TARGETS["onnxruntime"])).model.graph.node
    makers = {name: node for node in nodes for name in node.output}
    readers = {node.op_type for node in nodes for name in node.input if name in makers and
               makers[name].op_type == "QuantizeLinear"}  # fmt: skip
    assert "Clip" in readers
    quantized_values = [node.input[0] for node in nodes if node.op_type == "QuantizeLinear"]
    assert not {"Relu", "MaxPool"} & {makers[name].op_type for name in quantized_values if name in makers}
    for node in nodes:
        if node.op_type in ("MaxPool", "Pad", "Slice"):
            before = makers[node.input[0]].op_type
            assert before in ("Clip", "QuantizeLinear", "MaxPool", "Pad", "Resize", "Slice"), (
                f"{node.op_type} reads {before}"
            )


def test_biases_are_what_kernels_add_and_rounding_twice_is_rounding_once() -> None:
    quantized = calibrated(tiny(), "onnxruntime", 4, 8).quantized
    before = {name: tensor.clone() for name, tensor in quantized.chain.module.state_dict().items()}
    round_biases(quantized.chain, onnx_rules(TARGETS["onnxruntime"]))
    after = quantized.chain.module.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    scale = quantized.activation("fc").scale
    codes = after["fc.bias"] / (scale * quantized.weight("fc").scale.flatten())
    torch.testing.assert_close(codes, codes.round(), rtol=0, atol=1e-3)
    assert not torch.equal(after["fc.bias"], tiny().fc.bias)


class Shared(nn.Module):
    """One convolution called three times, on tensors of different ranges."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 6, 3, padding=1)
        self.shared = nn.Conv2d(6, 6, 3, padding=1)
        self.last = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.shared(F.relu(self.first(x))))
        return self.last(F.relu(self.shared(F.relu(self.shared(3 * x)))).mean((2, 3)))


def test_each_call_of_a_layer_has_the_bias_that_its_kernel_adds_and_a_saved_model_has_it_too(tmp_path: Path) -> None:
    torch.manual_seed(4)
    model = Shared().eval()
    result = calibrated(model, "onnxruntime", 4, 8)
    state = result.quantized.chain.module.state_dict()
    first, *further = (state[f"shared.bias{ending}"] for ending in ("", "_of_call_2", "_of_call_3"))
    assert all(0 < float((first - other).abs().max()) < 0.1 for other in further)
    rounded = with_rounded_biases(result.quantized.chain, onnx_rules(TARGETS["onnxruntime"]))
    torch.testing.assert_close(rounded.module(IMAGES), result.model(IMAGES), rtol=0, atol=0)
    result.save(tmp_path / "run")
    torch.testing.assert_close(clcalib.load(tmp_path / "run", model)(IMAGES), result.model(IMAGES), rtol=0, atol=0)
    loaded = load_chain(tmp_path / "run", model).quantized
    emitted = write_onnx(loaded, tmp_path / "model.onnx", TARGETS["onnxruntime"])
    found = compare_codes(loaded.chain, emitted, session(with_codes(emitted), threads=1), IMAGES)
    assert found.max_code_difference <= 1
    torch.testing.assert_close(result.float_state_dict(model)["shared.bias"], first)
    assert "shared.bias_of_call_2" not in model.state_dict()


def test_runs_that_were_saved_with_one_bias_for_all_calls_are_still_loaded(tmp_path: Path) -> None:
    torch.manual_seed(4)
    model = Shared().eval()
    calibrated(model, "torch", 8, 8).save(tmp_path / "run")  # its kernels add floats
    loaded = load_chain(tmp_path / "run", model)
    assert [name for name in loaded.quantized.chain.module.state_dict() if "of_call" in name] == []
    with pytest.raises(CheckpointError, match="does not fit"):
        load_chain(tmp_path / "run", tiny())


def test_a_wrong_kernel_is_found_and_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    result = calibrated(tiny(), "onnxruntime", 8, 8)
    quantized = result.quantized
    emitted = emit(quantized.chain, rules=onnx_rules(TARGETS["onnxruntime"]))
    name = next(name for name in quantized.activations.values() if "conv2_output" in name)
    own = quantized.chain.module.get_submodule(name)
    assert isinstance(own, ActivationQuantizer)
    broken = quantized.copy()
    broken.replace(name, ActivationQuantizer(QParams(own.scale * 0.9, own.zero_point), own.spec))
    found = compare_codes(broken.chain, emitted, session(with_codes(emitted), threads=1), IMAGES)
    assert found.max_code_difference > 1
    assert found.parting is not None
    monkeypatch.setattr("clcalib.deployment.with_rounded_biases", lambda chain, rules: broken.chain)
    evaluation = clcalib.EvaluationSet.from_tensor(IMAGES)
    with pytest.warns(KernelDifferenceWarning, match="do not trust the file"):
        record = deploy(result, tmp_path / "model.onnx", evaluation).record
    assert "do not trust the file" in record.warnings[-1]


def test_the_record_has_the_proof(tmp_path: Path) -> None:
    result = calibrated(tiny(), "onnxruntime", 8, 8)
    evaluation = clcalib.EvaluationSet.from_tensor(IMAGES, torch.zeros(len(IMAGES), dtype=torch.int64))
    with warnings.catch_warnings():
        warnings.simplefilter("error", KernelDifferenceWarning)
        found = deploy(result, tmp_path / "model.onnx", evaluation, count=32).record.deployment
    assert found is not None
    assert (found.images, found.integer_layers, found.float_layers) == (32, 4, 0)
    assert found.agreement == 1
    assert found.max_code_difference is not None
    assert found.max_code_difference <= 1
    assert found.file_bytes == (tmp_path / "model.onnx").stat().st_size
    assert found.runtime is not None
    assert found.runtime.startswith("ONNX Runtime")


def test_images_of_the_wrong_type_are_told_by_name(tmp_path: Path) -> None:
    result = calibrated(tiny(), "paper", 8, 8)
    with pytest.raises(ArgumentError, match=r"evaluation: expected an EvaluationSet, or None, got Tensor; make one"):
        deploy(result, tmp_path / "model.onnx", IMAGES)  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []


def test_a_missing_runtime_costs_the_proof_and_not_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    result = calibrated(tiny(), "onnxruntime", 8, 8)
    monkeypatch.setitem(__import__("sys").modules, "onnxruntime", None)
    with pytest.warns(RuntimeMissingWarning, match=r"pip install .clcalib\[onnxruntime\]"):
        record = deploy(result, tmp_path / "model.onnx").record
    assert sum("pip install" in message for message in record.warnings) == 1
    assert record.warnings[:-1] == result.record.warnings
    found = record.deployment
    assert found is not None
    assert found.runtime is None
    assert (tmp_path / "model.onnx").is_file()


def test_a_target_that_nothing_here_executes_is_written_and_not_tried(tmp_path: Path) -> None:
    found = deploy(calibrated(tiny(), "tensorrt", 8, 8), tmp_path / "model.onnx").record.deployment
    assert found is not None
    assert (found.target, found.runtime, found.integer_layers) == ("tensorrt", None, None)


def test_operators_that_cannot_be_written_are_told_before_calibration() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 1)

        def forward(self, x: Tensor) -> Tensor:
            grid = F.affine_grid(torch.eye(2, 3).expand(x.shape[0], 2, 3), [x.shape[0], 4, 6, 6], align_corners=False)
            return F.grid_sample(self.conv(x), grid, align_corners=False).flatten(1)

    with pytest.raises(UnsupportedOperatorError, match=r"(?s)target onnxruntime.*grid_sampl") as raised:
        calibrated(Odd().eval(), "onnxruntime", 8, 8)
    assert any(remedy.startswith("--target torch") for remedy in raised.value.remedies)


def test_the_float_file_is_the_float_network(tmp_path: Path) -> None:
    model = moves()
    write_float(clcalib.capture(model, IMAGES[:2]), tmp_path / "float.onnx")
    found = session(tmp_path / "float.onnx", threads=1)(IMAGES.numpy())["logits"]
    np.testing.assert_allclose(found, model(IMAGES).detach().numpy(), rtol=0, atol=1e-5)


def test_a_loaded_run_is_deployed_as_the_first_one_was(tmp_path: Path) -> None:
    result, model = calibrated(tiny(), "onnxruntime", 4, 4), tiny()
    result.save(tmp_path / "run")
    loaded = load_chain(tmp_path / "run", model)
    assert loaded.target is target_of(here("onnxruntime"))
    for name, quantized in (("first", result.quantized), ("second", loaded.quantized)):
        write_onnx(quantized, tmp_path / f"{name}.onnx", loaded.target)
    assert (tmp_path / "first.onnx").read_bytes() == (tmp_path / "second.onnx").read_bytes()


def test_a_bias_that_would_not_fit_gets_a_larger_scale(tmp_path: Path) -> None:
    model = tiny()
    with torch.no_grad():
        model.conv.weight[2] *= 1e-11
        model.bn.bias[2] = 0.7
    quantized = calibrated(model, "onnxruntime", 8, 8).quantized
    scale = quantized.weight("conv").scale.flatten()
    emitted = write_onnx(quantized, tmp_path / "model.onnx", TARGETS["onnxruntime"])
    found = compare_codes(quantized.chain, emitted, session(with_codes(emitted), threads=1), IMAGES)
    assert float(scale[2]) > 1e-10
    assert found.max_code_difference <= 1
    values = quantized.chain.module(IMAGES)
    torch.testing.assert_close(values, model(IMAGES).detach(), rtol=0, atol=0.2 * float(values.abs().max()))
