"""A network by name and images by a list, from the first command to the last."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import save_file

from clcalib.cli import main
from clcalib.report.record import read_record

timm = pytest.importorskip("timm")
Capture = pytest.CaptureFixture[str]
ENTRY = "timm:test_resnet"


@pytest.fixture
def place(workplace: Path) -> Path:
    """A list of images of several sizes, and weights for the network."""
    generator = np.random.default_rng(0)
    lines = []
    for number in range(8):
        pixels = generator.integers(0, 256, (170 + number, 200, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(workplace / f"{number}.png")
        lines.append(f"{number}.png\t{number % 3}")
    (workplace / "list.txt").write_text("\n".join(lines))
    save_file(timm.create_model("test_resnet", num_classes=3).state_dict(), workplace / "weights.safetensors")
    return workplace


def quantize(*more: str) -> int:
    given = ["--model", ENTRY, "--set", "model.arguments={num_classes = 3}", "--recipe", "nearest", "--bits", "W8A8"]
    return main(["quantize", *given, "--calibration", "list.txt", "--evaluation", "list.txt", *more])


def test_its_own_transform_is_used_told_and_kept(place: Path, capsys: Capture) -> None:
    assert quantize("--weights", "weights.safetensors", "--out", "out") == 0
    own = "resize 168 bilinear, crop 160, mean (0.5, 0.5, 0.5), standard deviation (0.5, 0.5, 0.5)"
    told = capsys.readouterr().err
    assert f"images: {own}, as {ENTRY} itself says" in told
    assert "random weights" not in told
    record = read_record("out/run.json")
    assert record.calibration_transform == own
    saved = json.loads((place / "out" / "config.json").read_text())["data"]
    assert (saved["resize"], saved["crop"], saved["interpolation"]) == (168, 160, "bilinear")
    assert main(["evaluate", "out"]) == 0
    printed = capsys.readouterr()
    assert f"images: {own}" in printed.err
    assert "100.00" in printed.out


def test_random_weights_and_another_transform_are_told(place: Path, capsys: Capture) -> None:
    assert quantize("--set", "data.crop=64", "--out", "out") == 0
    told = capsys.readouterr().err
    assert f"warning: {ENTRY} has random weights" in told
    assert f"warning: images get another transform than {ENTRY} was trained for: resize none and not 168" in told
    record = read_record("out/run.json")
    assert any("has random weights" in text for text in record.warnings)
    assert record.calibration_transform is not None
    assert record.calibration_transform.startswith("crop 64, mean (0.5")


def test_weights_are_given_in_one_way(place: Path, capsys: Capture) -> None:
    assert quantize("--weights", "weights.safetensors", "--pretrained", "--out", "out") == 2
    assert "--weights, --pretrained: expected a file of weights, or the published ones" in capsys.readouterr().err
    assert main(["quantize", "--config", "run.toml", "run.toml"]) == 2
    assert "one configuration file" in capsys.readouterr().err
