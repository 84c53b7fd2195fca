"""Of a detector the command line compares boxes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from tests.capture.detector import Boxed

from clcalib.cli.app import main

Capture = pytest.CaptureFixture[str]
ENTRY = "from tests.capture.detector import Boxed\n\ndef build():\n    return Boxed().eval()\n"
TOML = """
[model]
entry = "detector.py:build"
weights = "detector.safetensors"
submodule = "backbone"
[data]
calibration = "calibration.safetensors"
evaluation = "evaluation.safetensors"
[quantization]
weights = 8
activations = 8
[recipe]
name = "qdrop"
steps = 2
"""


@pytest.fixture
def detecting(workplace: Path) -> Path:
    torch.manual_seed(0)
    (workplace / "detector.py").write_text(ENTRY)
    (workplace / "detector.toml").write_text(TOML)
    save_file(Boxed().state_dict(), workplace / "detector.safetensors")
    return workplace


def test_boxes_are_compared_by_both_commands(detecting: Path, capsys: Capture) -> None:
    assert main(["quantize", "detector.toml", "--out", "out"]) == 0
    printed = capsys.readouterr().out
    found = json.loads((detecting / "out" / "run.json").read_text())["detection"]
    assert found["detections"] == 4 * 20
    assert found["matched"] > 0.8 < found["overlap"]
    assert "80 float detections, scores from 0.5 on" in printed
    assert f"{100 * found['matched']:.2f}" in printed
    assert main(["evaluate", "out"]) == 0
    printed = capsys.readouterr().out
    assert "80 float detections" in printed
    assert f"{100 * found['matched']:.2f}" in printed
    assert f"{100 * found['overlap']:.2f}" in printed
    assert main(["evaluate", "out", "--score-threshold", "1"]) == 0
    assert "0 float detections" in capsys.readouterr().out


def test_narrow_widths_lose_more_boxes(detecting: Path) -> None:
    matched = []
    for bits in ("W8A8", "W2A2"):
        assert main(["quantize", "detector.toml", "--bits", bits, "--out", bits, "--quiet"]) == 0
        matched.append(json.loads((detecting / bits / "run.json").read_text())["detection"]["matched"])
    assert matched[0] > matched[1]


def test_a_dry_run_takes_a_detector_too(detecting: Path, capsys: Capture) -> None:
    assert main(["quantize", "detector.toml", "--dry-run"]) == 0
    assert "evaluation" in capsys.readouterr().out


def test_without_the_float_weights_there_is_nothing_to_compare_with(detecting: Path, capsys: Capture) -> None:
    assert main(["quantize", "detector.toml", "--recipe", "nearest", "--out", "out", "--quiet"]) == 0
    path = detecting / "out" / "config.json"
    config = json.loads(path.read_text())
    config["model"]["weights"] = None
    path.write_text(json.dumps(config))
    assert main(["evaluate", "out"]) == 2
    assert "--weights: expected those of the float detector" in capsys.readouterr().err
