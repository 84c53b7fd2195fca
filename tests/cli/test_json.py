"""``--json``: one document on stdout, and everything else on stderr."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from clcalib.cli import main
from clcalib.quant.targets import TARGETS

Capture = pytest.CaptureFixture[str]


def document(capsys: Capture, *arguments: str) -> tuple[Any, str]:
    """What was printed as JSON, and what was told beside it."""
    assert main(list(arguments)) == 0
    printed = capsys.readouterr()
    return json.loads(printed.out), printed.err


def test_quantize_prints_its_record(workplace: Path, capsys: Capture) -> None:
    given = ("quantize", "run.toml", "--out", "out", "--set", "data.crop=8")
    found, told = document(capsys, *given, "--json")
    assert found == json.loads((workplace / "out" / "run.json").read_text())
    assert "images: crop 8, mean (0.485, 0.456, 0.406)" in told
    assert "unit 1 of " in told
    assert "Policy" in told
    assert found["calibration_transform"] == "none"  # floats are taken as they are
    quiet = document(capsys, "quantize", "--resume", "out", "--json", "--quiet")
    assert quiet[0] == found


def test_a_dry_run_prints_its_estimate(workplace: Path, capsys: Capture) -> None:
    found, _ = document(capsys, "quantize", "run.toml", "--dry-run", "--json")
    assert found["seconds"] > 0
    assert [unit["steps"] for unit in found["units"]] == [12, 12, 12]
    assert not (workplace / "out").exists()


def test_describe_prints_units_and_widths(workplace: Path, capsys: Capture) -> None:
    found, _ = document(capsys, "describe", "run.toml", "--unit", "layer", "--json")
    assert found["image_shape"] == [3, 8, 8]
    assert [unit["name"] for unit in found["units"]] == ["0", "3", "7"]
    assert [row["weight_bits"] for row in found["policy"]] == [8, 4, 8]


def test_describe_of_a_network_by_name_needs_no_shape(workplace: Path, capsys: Capture) -> None:
    pytest.importorskip("torchvision")
    found, told = document(capsys, "describe", "--model", "torchvision:shufflenet_v2_x0_5", "--json")
    assert found["image_shape"] == [3, 224, 224]
    told = " ".join(told.split())
    assert "itself takes: resize 256 bilinear, crop 224" in told
    assert "weights: random" in told


def test_evaluate_prints_a_row_for_each_model(workplace: Path, capsys: Capture) -> None:
    assert main(["quantize", "run.toml", "--recipe", "nearest", "--out", "out", "--quiet"]) == 0
    capsys.readouterr()
    rows, _ = document(capsys, "evaluate", "out", "--json")
    assert [row["computed_by"] for row in rows] == ["PyTorch", "simulation"]


def test_targets_are_all_there(capsys: Capture) -> None:
    found, told = document(capsys, "targets", "--json")
    assert [row["name"] for row in found] == list(TARGETS)
    assert told == ""


def test_files_that_are_written_are_told(workplace: Path, capsys: Capture) -> None:
    assert main(["quantize", "run.toml", "--recipe", "nearest", "--out", "out", "--quiet"]) == 0
    capsys.readouterr()
    found, _ = document(capsys, "report", "out", "--out", "page.html", "--json")
    assert found == {"page": "page.html", "bytes": Path("page.html").stat().st_size}
    pytest.importorskip("onnx")
    found, _ = document(capsys, "export", "out", "--out", "model.onnx", "--json")
    assert (found["target"], found["file"]) == ("paper", "model.onnx")
    assert found["file_bytes"] == Path("model.onnx").stat().st_size
