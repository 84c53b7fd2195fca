"""``quantize --target``, ``export`` and ``targets``: what they print, what they leave, what they refuse."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
from tests.processors import here

from clcalib.cli import main
from clcalib.report.record import read_record

Capture = pytest.CaptureFixture[str]
FILES = [
    "config.json",
    "model.json",
    "model.onnx",
    "model.safetensors",
    "report.html",
    "report.json",
    "run.json",
    "trace.json",
]


@pytest.fixture
def deployed(workplace: Path, capsys: Capture) -> Path:
    arguments = ["quantize", "run.toml", "--bits", "W4A4", "--target", here("onnxruntime"), "--threads", "1"]
    assert main([*arguments, "--out", "runs/a"]) == 0
    return workplace / "runs" / "a"


def test_a_run_for_a_target_leaves_the_file_and_the_proof(deployed: Path, capsys: Capture) -> None:
    assert sorted(os.listdir(deployed)) == FILES
    record = read_record(deployed / "run.json")
    assert record.runtime_target == here("onnxruntime")
    assert record.deployment is not None
    assert (record.deployment.integer_layers, record.deployment.float_layers) == (3, 0)
    assert (record.deployment.images, record.deployment.agreement) == (20, 1)
    assert record.deployment.max_code_difference is not None
    assert record.deployment.max_code_difference <= 1


def test_a_runtime_that_is_not_there_is_told_and_recorded(
    workplace: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    arguments = ["quantize", "run.toml", "--bits", "W8A8", "--target", here("onnxruntime"), "--quiet"]
    assert main([*arguments, "--recipe", "nearest", "--out", "runs/e"]) == 0
    early, late = read_record("runs/e/run.json").warnings
    assert "pip install" in early
    assert "was written and not tried" in late
    told = capsys.readouterr().err.splitlines()
    assert [f"warning: {message}" in told for message in (early, late)] == [True, True]


def test_what_was_written_is_shown_and_measured_again(workplace: Path, capsys: Capture) -> None:
    arguments = ["quantize", "run.toml", "--bits", "W8A8", "--target", "openvino", "--recipe", "nearest"]
    assert main([*arguments, "--out", "runs/b", "--set", "recipe.name=nearest"]) == 0
    printed = capsys.readouterr().out
    assert "For openvino: model.onnx" in printed
    assert "3 of 3 in integers" in printed
    assert "tensor" in printed[: printed.index("For openvino")]  # lines of the policy
    assert main(["evaluate", "runs/b/model.onnx", "--runtime", "openvino"]) == 0
    assert "model.onnx" in capsys.readouterr().out


def test_export_writes_the_same_file_again_and_the_float_one(deployed: Path, capsys: Capture) -> None:
    assert main(["export", "runs/a", "--out", "again.onnx", "--float", "float.onnx"]) == 0
    assert "3 of 3 in integers" in capsys.readouterr().out
    assert Path("again.onnx").read_bytes() == (deployed / "model.onnx").read_bytes()
    assert main(["bench", "float.onnx", "again.onnx", "--batch", "1", "--threads", "1", "--rounds", "1"]) == 0
    assert "speed-up" in capsys.readouterr().out
    assert main(["export", "runs/a", "--out", "again.onnx"]) == 3
    assert "again.onnx exists" in capsys.readouterr().err


def test_a_run_without_a_target_is_written_as_a_reference(workplace: Path, capsys: Capture) -> None:
    assert main(["quantize", "run.toml", "--bits", "W2A3", "--out", "runs/c"]) == 0
    capsys.readouterr()
    assert main(["export", "runs/c"]) == 0
    printed = capsys.readouterr().out
    assert "For paper: model.onnx" in printed
    assert "not run here" in printed
    assert main(["evaluate", "runs/c/model.onnx"]) == 0
    assert main(["evaluate", "runs/c"]) == 0
    onnx, torch = (part.splitlines() for part in capsys.readouterr().out.split("20 evaluation images")[1:])
    assert onnx[3].split("│")[1:] == torch[3].split("│")[1:]


def test_targets_are_listed(capsys: Capture) -> None:
    assert main(["targets"]) == 0
    printed = capsys.readouterr().out
    assert all(name in printed for name in ("paper", "onnxruntime", "openvino", "tensorrt"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--target", "onnx"], "target (--target): expected one of paper, onnxruntime"),
        (["--target", "tensorrt", "--bits", "W8A4"], "for target tensorrt, got 4"),
        (["--target", "tensorrt", "--bits", "W8A8", "--bits", "3=W4"], "weights of 3"),
    ],
)
def test_what_a_target_does_not_have_is_told_before_any_work(
    workplace: Path, capsys: Capture, arguments: list[str], message: str
) -> None:
    assert main(["quantize", "run.toml", *arguments, "--out", "runs/d"]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error
    assert not (workplace / "runs" / "d").exists()


def test_export_of_what_is_no_run(workplace: Path, capsys: Capture) -> None:
    assert main(["export", "runs/nothing"]) == 2
    assert "no such file" in capsys.readouterr().err
    assert main(["describe", "run.toml", "--target", "onnxruntime", "--bits", "W8A8"]) == 0
    assert "result of 3" in " ".join(capsys.readouterr().out.split())
