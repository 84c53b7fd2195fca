"""What a target would refuse after calibration is told before it, with the place, what happened and what helps."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.tiny import images, tiny
from torch import Tensor, nn
from torch.nn import functional as F

import clcalib
from clcalib.calibrate.observer import SilentObserver
from clcalib.capture.chain import capture
from clcalib.cli import main
from clcalib.errors import CheckpointError, RuntimeMissingWarning, UnsupportedOperatorError
from clcalib.export import rehearsal
from clcalib.export.onnx import movement
from clcalib.export.rehearsal import Widths, rehearse
from clcalib.export.runtimes.onnx_runtime import OnnxRuntime
from clcalib.export.runtimes.session import Session
from clcalib.export.trial import try_out
from clcalib.quant.modules import ActivationQuantizer
from clcalib.quant.targets import TARGETS

ONNX_RUNTIME = TARGETS["onnxruntime"]


class Precise(nn.Module):
    """A network with an error function in float64, for which ONNX Runtime has no kernel, and OpenVINO has one."""

    class Smooth(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.erf(x.double()).float()

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.smooth, self.fc = nn.Conv2d(3, 4, 3), self.Smooth(), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.smooth(self.conv(x)).mean((2, 3)))


class Rolled(nn.Module):
    """A network in which images change places."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 4, 3), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(torch.roll(F.relu(self.conv(x)), 1, 0).mean((2, 3)))


class Watching(SilentObserver):
    """Keeps the stages, and the units that were started."""

    def __init__(self) -> None:
        self.stages: list[str] = []
        self.units: list[str] = []

    def stage(self, name: str) -> None:
        self.stages.append(name)

    def unit_started(self, index: int, count: int, name: str, kind: str, steps: int) -> None:
        self.units.append(name)


@pytest.fixture
def few_targets(monkeypatch: pytest.MonkeyPatch) -> None:
    """Alternatives are looked for among these; each costs a trial."""
    # Not in the table itself, whose order would be another one afterwards.
    monkeypatch.setattr(rehearsal, "TARGETS", {name: TARGETS[name] for name in ("paper", "onnxruntime", "openvino")})


def run(model: nn.Module, target: str | None = "onnxruntime", **options: Any) -> clcalib.QuantizationResult:
    settings: dict[str, Any] = {"recipe": clcalib.recipes.qdrop(steps=1), "bits": clcalib.Bits(8, 8), **options}
    calibration = clcalib.CalibrationSet.from_tensor(images())
    return clcalib.quantize(model, calibration, target=target, measured_images=0, **settings)


def refusal(model: nn.Module, **options: Any) -> tuple[Watching, UnsupportedOperatorError]:
    watching = Watching()
    with pytest.raises(UnsupportedOperatorError) as raised:
        run(model, observer=watching, **options)
    return watching, raised.value


def network() -> Precise:
    torch.manual_seed(0)
    return Precise().eval()


@pytest.mark.usefixtures("few_targets")
def test_an_operator_that_the_runtime_has_no_kernel_for_is_told_before_calibration() -> None:
    watching, error = refusal(network())
    assert watching.stages == ["capture", "rehearsal"]
    assert watching.units == []
    text = str(error)
    assert "target onnxruntime does not take the network" in text
    assert "loading the file in ONNX Runtime" in text
    assert "Erf(13)" in text
    assert "at aten.erf in smooth, node erf" in text
    assert "--target openvino: written and run here just now" in text
    assert "--target paper: not run here" in text
    assert "--submodule PART" in text


def test_the_target_that_is_named_takes_it() -> None:
    watching = Watching()
    result = run(network(), "openvino", observer=watching)
    assert "rehearsal" in watching.stages
    assert result.record.seconds_per_stage["rehearsal"] > 0
    assert len(watching.units) > 0


def test_without_a_target_or_where_it_is_not_wanted_nothing_is_tried() -> None:
    cases: list[tuple[str | None, dict[str, bool]]] = [(None, {}), ("onnxruntime", {"is_rehearsed": False})]
    for target, options in cases:
        watching = Watching()
        run(network(), target, observer=watching, **options)
        assert "rehearsal" not in watching.stages


def test_a_layer_that_is_refused_is_offered_in_float(monkeypatch: pytest.MonkeyPatch, few_targets: None) -> None:
    """Stands in for a runtime without an integer kernel for one layer."""
    whole = OnnxRuntime.session

    def session(self: OnnxRuntime, model: Any, threads: int | None = None) -> Session:
        makers = {name: node.op_type for node in model.proto.graph.node for name in node.output}
        (layer,) = (node for node in model.proto.graph.node if node.name == "block.conv1")
        if makers.get(layer.input[1]) == "DequantizeLinear":
            raise CheckpointError("no kernel for node 'block.conv1'")
        return whole(self, model, threads)

    monkeypatch.setattr(OnnxRuntime, "session", session)
    monkeypatch.setattr(rehearsal, "TARGETS", {name: TARGETS[name] for name in ("paper", "onnxruntime")})
    watching, error = refusal(tiny())
    assert watching.units == []
    assert "at aten.conv2d in block.conv1, node conv2d_1" in str(error)
    assert "--float 'block.conv1': written and run here just now" in error.remedies
    assert not any("openvino" in remedy for remedy in error.remedies)


def test_a_batch_that_is_baked_in_is_told(monkeypatch: pytest.MonkeyPatch, few_targets: None) -> None:
    """Stands in for an emitter that writes the captured batch into a shape."""

    def fixed(call: Any) -> None:
        sizes = [int(size) if str(size).isdigit() else 2 for size in call.result.shape]
        call.end("Reshape", call.tensor("self"), call.sizes(sizes))

    monkeypatch.setattr(movement, "end_reshape", lambda call, source: fixed(call))
    watching, error = refusal(tiny())
    assert watching.units == []
    assert "its batch size is baked in" in str(error)
    assert "running a batch of 1 in ONNX Runtime" in str(error)
    assert "node view" in str(error)
    assert any("follows the batch" in remedy for remedy in error.remedies)


@pytest.mark.usefixtures("few_targets")
def test_a_size_that_follows_the_batch_where_none_may_has_alternatives() -> None:
    torch.manual_seed(0)
    watching, error = refusal(Rolled().eval())
    assert watching.units == []
    assert "aten.roll (along the batch) in the model itself" in str(error)
    assert not any("--target" in remedy for remedy in error.remedies)  # all three write ONNX
    assert any("follows the batch" in remedy for remedy in error.remedies)


@pytest.mark.parametrize(
    ("outputs", "message"),
    [
        (lambda values: [value[:1] for value in values], r"the result has the shape \(1, 4\), expected \(2, 4\)"),
        (lambda values: [value * np.nan for value in values], "results are NaN or infinite"),
    ],
)
def test_results_of_another_shape_or_without_a_value_are_told(
    outputs: Any, message: str, monkeypatch: pytest.MonkeyPatch, few_targets: None
) -> None:
    whole = OnnxRuntime.session

    def session(self: OnnxRuntime, model: Any, threads: int | None = None) -> Session:
        own = whole(self, model, threads)
        return Session(own.input, own.outputs, lambda batch: outputs(own.execute(batch)))

    monkeypatch.setattr(OnnxRuntime, "session", session)
    with pytest.raises(UnsupportedOperatorError, match=message):
        run(tiny())


@pytest.mark.parametrize(
    ("target", "package"), [("onnxruntime", "onnxruntime"), ("openvino", "openvino"), ("tensorrt", "onnx")]
)
def test_what_is_not_installed_is_told_before_the_first_unit(
    target: str, package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    watching, told = Watching(), list[tuple[type[Warning], int]]()
    with warnings.catch_warnings():
        warnings.simplefilter("always", RuntimeMissingWarning)
        warnings.showwarning = lambda message, category, *_: told.append((category, len(watching.units)))
        run(tiny(), target, observer=watching)
    assert told == [(RuntimeMissingWarning, 0)]
    assert len(watching.units) == 3


def test_what_is_not_proved_and_how_to_install_it_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    chain = capture(tiny(), images(2))
    with pytest.warns(RuntimeMissingWarning, match=r"(?s)target openvino was not tried .*codes will not be compared"
                                                   r'.*pip install "clcalib\[openvino\]"'):  # fmt: skip
        assert not rehearse(Widths(chain, clcalib.Bits(8, 8)), TARGETS["openvino"], images(2))


def test_the_chain_and_the_random_state_are_left_alone_and_one_image_is_enough() -> None:
    chain = capture(tiny(), images(2))
    before = {name: tensor.clone() for name, tensor in chain.module.state_dict().items()}
    nodes, state = [str(node) for node in chain.module.graph.nodes], torch.get_rng_state()
    assert rehearse(Widths(chain, clcalib.Bits(4, 4)), ONNX_RUNTIME, images(1))
    assert [str(node) for node in chain.module.graph.nodes] == nodes
    assert all(torch.equal(before[name], tensor) for name, tensor in chain.module.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)
    assert not any(isinstance(module, ActivationQuantizer) for module in chain.module.modules())


def test_every_width_of_a_target_is_written_and_run() -> None:
    chain = capture(tiny(), images(2))
    for bits in ONNX_RUNTIME.weight_bits:
        widths = Widths(chain, clcalib.Bits(bits, bits), first_last_bits="same")
        try_out(chain, widths.policy(ONNX_RUNTIME), ONNX_RUNTIME, images(2))
    assert len(ONNX_RUNTIME.weight_bits) == 7


def test_a_budget_is_not_searched_for_a_target_that_takes_no_network(few_targets: None) -> None:
    watching = Watching()
    calibration = clcalib.CalibrationSet.from_tensor(images())
    settings: dict[str, Any] = {"recipe": clcalib.recipes.nearest(), "bits": clcalib.Bits(8, 8), "observer": watching}
    with pytest.raises(UnsupportedOperatorError, match="target onnxruntime does not take the network"):
        clcalib.quantize_to_budget(
            network(), calibration, budget=clcalib.Budget(size="1MB"), target="onnxruntime", **settings
        )
    assert watching.stages == ["widths", "rehearsal"]


NETWORK = """
import torch
from torch import nn

class Smooth(nn.Module):
    def forward(self, x):
        return torch.erf(x.double()).float()

def build():
    return nn.Sequential(nn.Conv2d(3, 4, 3), Smooth(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))
"""


@pytest.mark.usefixtures("few_targets")
@pytest.mark.parametrize(
    "arguments",
    [
        ["quantize", "--dry-run", "--calibration", "images.safetensors"],
        ["quantize", "--out", "out", "--calibration", "images.safetensors"],
        ["describe", "--shape", "3,8,8"],
    ],
    ids=["dry run", "quantize", "describe"],
)
def test_commands_tell_it_in_words(
    arguments: Sequence[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from safetensors.torch import save_file

    monkeypatch.chdir(tmp_path)
    Path("net.py").write_text(NETWORK)
    save_file({"images": images()}, "images.safetensors")
    assert main([*arguments, "--model", "net.py:build", "--bits", "W8A8", "--target", "onnxruntime"]) == 2
    printed = capsys.readouterr()
    assert "at aten.erf in 1, node erf" in printed.err
    assert "--target openvino: written and run here just now" in printed.err
    assert "Traceback" not in printed.err
    assert not Path("out").exists()


def test_describe_says_that_it_was_tried(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("net.py").write_text(NETWORK)
    arguments = ["describe", "--model", "net.py:build", "--shape", "3,8,8", "--bits", "W8A8", "--target", "openvino"]
    assert main(arguments) == 0
    assert "target openvino: written, loaded and run just now" in capsys.readouterr().out
