"""Programs of torch.export: they give what the simulation gives, hold integers, and oneDNN's kernels compute them."""

from __future__ import annotations

import io
import sys
from pathlib import Path

import pytest
import torch
from tests.processors import here
from tests.tiny import images, tiny
from torch import Tensor, nn
from torch.nn import functional as F

import clcalib
from clcalib.capture.chain import capture
from clcalib.deployment import deploy
from clcalib.errors import ArgumentError, CheckpointError, MissingPackageError, RuntimeMissingWarning
from clcalib.export.deployed import write_float, write_program
from clcalib.export.program import x86
from clcalib.export.program.emit import MARK, emit_program, grids_of
from clcalib.export.program.operators import operators
from clcalib.quant.policy import LayerPolicy
from clcalib.quant.spec import QuantSpec
from clcalib.quant.targets import target_of

TORCH = target_of("torch")
assert TORCH is not None
NEEDS_TORCHAO = "the optional package that reaches PyTorch's integer kernels"


class Mixed(nn.Module):
    """A pool behind a clamp, a sum of two convolutions, a grouped one, a padded shortcut, a transposed one."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.left, self.right = nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.Conv2d(8, 8, 1)
        self.wide = nn.Conv2d(8, 12, 3, padding=1, stride=2)
        self.up = nn.ConvTranspose2d(12, 4, 2, stride=2)
        self.fc = nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu6(self.stem(x)), 2)
        x = F.relu(self.left(x) + self.right(x))
        x = F.relu(self.wide(x) + F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 2, 2)))
        return self.fc(self.up(x).mean((2, 3)))


def quantized(model: nn.Module, bits: int = 8) -> clcalib.QuantizationResult:
    calibration = clcalib.CalibrationSet.from_tensor(images())
    recipe, target = clcalib.recipes.nearest(), here("torch")
    settings = {"recipe": recipe, "measured_images": 0, "target": target, "is_rehearsed": False}
    return clcalib.quantize(model, calibration, bits=clcalib.Bits(bits, 8), **settings)  # type: ignore[arg-type]


@pytest.fixture(scope="module", params=["tiny", "mixed"])
def result(request: pytest.FixtureRequest) -> clcalib.QuantizationResult:
    torch.manual_seed(0)
    return quantized(tiny() if request.param == "tiny" else Mixed().eval())


def steps(result: clcalib.QuantizationResult) -> float:
    """The largest step of a quantizer: how far apart two neighbouring codes are."""
    return max(grid.scale for grid in grids_of(result.quantized).values())


@pytest.mark.parametrize("is_signed", [False, True])
def test_the_program_gives_what_the_simulation_gives_for_any_batch(
    result: clcalib.QuantizationResult, is_signed: bool
) -> None:
    program = emit_program(result.quantized, is_signed=is_signed).module()
    for count in (1, 48):
        shown = images(count, seed=3)
        with torch.no_grad():
            difference = (program(shown) - result.model(shown)).abs()
        # A value in the middle of two codes may go to either; everything else is float noise.
        assert float(difference.max()) <= steps(result)
        assert float((difference > 1e-5).float().mean()) < 0.05


def test_weights_are_stored_as_int8_and_nothing_of_the_float_ones_is_left(
    result: clcalib.QuantizationResult, tmp_path: Path
) -> None:
    write_program(result.quantized, tmp_path / "model.pt2", TORCH)
    state = x86.load_program(tmp_path / "model.pt2").state_dict
    for layer, name in result.quantized.weights.items():
        codes = result.quantized.weight(layer).codes
        assert state[f"{name}_codes"].dtype == torch.int8
        assert torch.equal(state[f"{name}_codes"].short(), codes)
        floats = [key for key, value in state.items() if value.is_floating_point() and value.shape == codes.shape]
        assert floats == [], layer


def test_the_file_of_a_larger_network_is_about_a_quarter(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 128, 3, padding=1), nn.ReLU(), nn.Conv2d(128, 256, 3, padding=1)).eval()
    write_program(quantized(model).quantized, tmp_path / "int8.pt2", TORCH)
    write_float(capture(model, images(2)), tmp_path / "float.pt2", TORCH)
    assert (tmp_path / "int8.pt2").stat().st_size < 0.35 * (tmp_path / "float.pt2").stat().st_size


def test_the_file_says_for_what_and_of_what_it_is_and_tells_no_paths(
    result: clcalib.QuantizationResult, tmp_path: Path
) -> None:
    write_program(result.quantized, tmp_path / "model.pt2", TORCH)
    content = (tmp_path / "model.pt2").read_bytes()
    extra = {"clcalib.target": "", "clcalib.codes": ""}
    operators()
    torch.export.load(io.BytesIO(content), extra_files=extra)
    assert extra["clcalib.target"] == "torch"
    assert len(extra["clcalib.codes"]) == 64
    assert str(Path(__file__).parent.parent).encode() not in content


@pytest.mark.parametrize("is_signed", [False, True])
def test_codes_that_are_asked_for_are_returned_too(result: clcalib.QuantizationResult, is_signed: bool) -> None:
    grids = grids_of(result.quantized, is_signed=is_signed)
    *codes, output = emit_program(result.quantized, is_signed=is_signed, returned_codes=list(grids)).module()(images(4))
    torch.testing.assert_close(output, emit_program(result.quantized, is_signed=is_signed).module()(images(4)))
    chain = result.quantized.chain
    simulated = chain.subgraph((chain.input_name,), list(grids))(images(4))
    for (name, grid), own, values in zip(grids.items(), codes, simulated, strict=True):
        wanted = torch.round(values / grid.scale) + grid.zero_point
        assert float((own.float() - wanted).abs().max()) <= 1, name  # a value in the middle may go to either
        assert float((own.float() != wanted).float().mean()) < 0.05, name


def test_every_quantizer_is_named_by_one_node(result: clcalib.QuantizationResult) -> None:
    marks = [node.meta.get("custom", {}).get(MARK) for node in emit_program(result.quantized).graph.nodes]
    assert sorted(filter(None, marks)) == sorted(result.quantized.activations.values())


def test_a_clamp_stays_only_where_the_codes_do_not_do_its_work() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU6(), nn.Conv2d(4, 4, 3)).eval()
    for factor, expected in ((0.01, 1), (100.0, 0)):
        chosen = quantized(model)
        name = chosen.quantized.activations["2"]
        quantizer = chosen.quantized.chain.module.get_submodule(name)
        quantizer.scale.fill_(6 / 255 / factor)  # type: ignore[operator, union-attr]
        targets = [str(node.target) for node in emit_program(chosen.quantized).graph.nodes]
        assert sum("relu6" in target or "hardtanh" in target for target in targets) == expected
        shown = 20 * images(8)
        with torch.no_grad():
            difference = emit_program(chosen.quantized).module()(shown) - chosen.model(shown)
        assert float(difference.abs().max()) <= float(quantizer.scale)  # type: ignore[arg-type]


def test_the_rules_are_told_before_calibration() -> None:
    calibration = clcalib.CalibrationSet.from_tensor(images())
    recipe = clcalib.recipes.nearest()
    with pytest.raises(ArgumentError, match="8 bits, or float, for target torch"):
        clcalib.quantize(tiny(), calibration, recipe=recipe, bits=clcalib.Bits(4, 4), target="torch")
    row = LayerPolicy("product", None, QuantSpec(8).on("log2"), "")
    with pytest.raises(ArgumentError, match="expected 'uniform' for target .*got 'log2'"):
        TORCH.check([row])


def test_a_file_that_is_no_program_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model.pt2").write_bytes(b"nothing")
    for path in (tmp_path / "model.pt2", tmp_path / "missing.pt2"):
        with pytest.raises(CheckpointError, match="not a program of torch.export"):
            x86.load_program(path)


def test_without_torchao_the_file_is_written_and_not_tried(
    result: clcalib.QuantizationResult, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    x86._torchao.cache_clear()
    monkeypatch.setitem(sys.modules, "torchao", None)
    for name in [name for name in sys.modules if name.startswith("torchao.")]:
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(MissingPackageError, match=r'pip install "clcalib\[torchao\]"'):
        x86.version()
    with pytest.warns(RuntimeMissingWarning, match="was written and not tried"):
        record = deploy(result, tmp_path / "model.pt2").record.deployment
    assert record is not None
    assert record.runtime is None
    assert record.file_bytes == (tmp_path / "model.pt2").stat().st_size


def test_integer_kernels_compute_all_layers_that_they_can_with_the_codes_of_the_simulation(
    result: clcalib.QuantizationResult, tmp_path: Path
) -> None:
    pytest.importorskip("torchao", reason=NEEDS_TORCHAO)
    evaluation = clcalib.EvaluationSet.from_tensor(images(70, seed=5), torch.arange(70) % 4)
    record = deploy(result, tmp_path / "model.pt2", evaluation).record.deployment
    assert record is not None
    is_mixed = "up" in result.quantized.weights
    assert (record.integer_layers, record.float_layers) == ((5, 1) if is_mixed else (4, 0))
    assert record.max_code_difference is not None
    assert record.max_code_difference <= 1
    assert len(record.tensors) == len(result.quantized.activations)
    assert record.agreement is not None
    assert record.agreement >= 0.98
    assert record.runtime is not None
    assert record.runtime.startswith("PyTorch ")
    if is_mixed:
        assert [row.reason[:11] for row in record.in_float if "convolution" in row.operation] == ["x86 kernels"]


def test_narrow_weights_are_computed_as_they_are(tmp_path: Path) -> None:
    pytest.importorskip("torchao", reason=NEEDS_TORCHAO)
    evaluation = clcalib.EvaluationSet.from_tensor(images(16, seed=5))
    record = deploy(quantized(tiny(), bits=3), tmp_path / "model.pt2", evaluation).record.deployment
    assert record is not None
    assert (record.integer_layers, record.max_code_difference) == (4, 0)


def test_zero_points_of_narrow_weights_are_taken_off_their_codes() -> None:
    result = quantized(tiny(), bits=4)
    weight = result.quantized.weight("block.conv1")
    assert weight.zero_point.any()
    program = emit_program(result.quantized)
    stored = program.state_dict[f"{result.quantized.weights['block.conv1']}_codes"]
    assert stored.dtype == torch.int8
    assert torch.equal(stored * weight.scale, weight())
    shown = images(16, seed=3)
    difference = (program.module()(shown) - result.model(shown)).abs()
    assert float(difference.max()) <= steps(result)
    assert float((difference > 1e-5).float().mean()) < 0.05


def test_a_sum_with_the_images_themselves_is_computed_whatever_their_layout(tmp_path: Path) -> None:
    pytest.importorskip("torchao", reason=NEEDS_TORCHAO)
    shown = torch.randn(48, 8, 6, 6, generator=torch.Generator().manual_seed(0))
    calibration, block = clcalib.CalibrationSet.from_tensor(shown), tiny().block
    settings = {"recipe": clcalib.recipes.nearest(), "measured_images": 0, "target": here("torch")}
    result = clcalib.quantize(block, calibration, bits=clcalib.Bits(8, 8), **settings)  # type: ignore[arg-type]
    write_program(result.quantized, tmp_path / "model.pt2", TORCH)
    lowered = x86.lower(x86.load_program(tmp_path / "model.pt2"), shown[:4])
    channels_last = lowered(shown[:4].contiguous(memory_format=torch.channels_last))[x86.OUTPUT]
    assert torch.equal(lowered(shown[:4])[x86.OUTPUT], channels_last)
    torch.testing.assert_close(channels_last, result.model(shown[:4]), rtol=0, atol=1.01 * steps(result))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning", "ignore::FutureWarning")
def test_compiled_code_calls_the_integer_kernels_and_gives_their_result(tmp_path: Path) -> None:
    pytest.importorskip("torchao", reason=NEEDS_TORCHAO)
    from torch._inductor import config
    from torch._inductor.utils import run_and_get_code

    write_program(quantized(tiny()).quantized, tmp_path / "model.pt2", TORCH)
    shown, program = images(16, seed=5), x86.load_program(tmp_path / "model.pt2")
    lowered = x86.lower(program, shown)
    with torch.no_grad(), config.patch(freezing=True):
        found, codes = run_and_get_code(torch.compile(program.module(), dynamic=False), shown)
    code = "\n".join(codes)
    # The first two convolutions, the one that takes in the sum, and the classifier.
    counts = {name: code.count(f"torch.ops.onednn.{name}") for name in KERNELS}
    assert counts == {"qconv_pointwise": 2, "qconv2d_pointwise": 1, "qlinear_pointwise": 1}
    assert torch.allclose(found, lowered(shown)[x86.OUTPUT], atol=1e-5)


KERNELS = ("qconv_pointwise", "qconv2d_pointwise", "qlinear_pointwise")
