"""``clcalib init``: a TOML that says everything, fits the network, and is taken as it is."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from clcalib.cli import main
from clcalib.cli.starter import SECTIONS, toml
from clcalib.config import build
from clcalib.config_problems import section_of
from clcalib.config_sections import RunConfig
from clcalib.config_sources import read_toml
from clcalib.named_models import own_transform
from clcalib.report.record import read_record

Capture = pytest.CaptureFixture[str]


def test_every_key_of_every_section_is_explained() -> None:
    assert set(SECTIONS) == set(RunConfig.model_fields)
    for section, (_, keys) in SECTIONS.items():
        kind = section_of(RunConfig.model_fields[section].annotation)
        fields = set(kind.model_fields) if kind is not None else set()
        assert set(keys) - {"steps"} == fields, section


def test_what_it_writes_is_run_as_it_is(workplace: Path, capsys: Capture) -> None:
    given = ["net.py:build", "--weights", "net.safetensors", "--images", "calibration.safetensors"]
    assert main(["init", *given, "--evaluation", "evaluation.safetensors", "--out", "own.toml"]) == 0
    printed = capsys.readouterr()
    assert printed.out == "own.toml\n"
    assert "clcalib quantize own.toml --dry-run" in printed.err
    assert main(["quantize", "--config", "own.toml", "--steps", "2", "--quiet"]) == 0
    record = read_record(workplace / "runs" / "build" / "run.json")
    assert (record.recipe, record.weight_bits, record.evaluation_images) == ("fast", 4, 20)


def test_lines_that_are_commented_out_are_sound_too(workplace: Path) -> None:
    """Each on its own, as a user would take its # away."""
    assert main(["init", "net.py:build", "--images", "calibration.safetensors", "--out", "own.toml"]) == 0
    text = (workplace / "own.toml").read_text()
    closed = [line for line in text.splitlines() if line.startswith("#") and not line.startswith(("# ", "#\n"))]
    assert len(closed) > 40
    for line in closed:
        if line != "#":
            tomllib.loads(line[1:])
    chosen = (
        text.replace("#resize = 256", "resize = 8").replace("#[guard]", "[guard]").replace("#images = 0", "images = 0")
    )
    (workplace / "own.toml").write_text(chosen.replace("#first_last_bits = 8", 'first_last_bits = "same"'))
    config = build(RunConfig, read_toml("own.toml"), "own.toml")
    assert (config.data.resize, config.quantization.first_last_bits) == (8, "same")


def test_a_file_that_is_there_is_kept(workplace: Path, capsys: Capture) -> None:
    before = (workplace / "run.toml").read_bytes()
    assert main(["init", "net.py:build"]) == 3
    assert "run.toml exists" in capsys.readouterr().err
    assert (workplace / "run.toml").read_bytes() == before
    assert main(["init", "net.py:build", "--overwrite"]) == 0
    assert (workplace / "run.toml").read_bytes() != before


def test_paths_are_those_that_the_file_needs(workplace: Path) -> None:
    (workplace / "deep").mkdir()
    given = ["net.py:build", "--weights", "net.safetensors", "--images", "hf:cifar10"]
    assert main(["init", *given, "--out", "deep/own.toml"]) == 0
    table = read_toml("deep/own.toml")
    assert table["model"]["weights"] == str(workplace / "net.safetensors")
    assert table["model"]["entry"] == f"{workplace / 'net.py'}:build"
    assert table["data"]["calibration"] == "hf:cifar10"
    assert table["run"]["out"] == str(workplace / "deep" / "runs" / "build")


def test_a_network_by_name_brings_its_transform(workplace: Path, capsys: Capture) -> None:
    pytest.importorskip("timm")
    entry = "timm:deit_tiny_patch16_224"
    assert main(["init", entry, "--pretrained", "--images", "calibration.safetensors", "--out", "own.toml"]) == 0
    config = build(RunConfig, read_toml("own.toml"), "own.toml")
    assert config.data.transform() == own_transform(entry, {}, None).transform
    assert str(config.model.weights) == "pretrained"
    assert "resize 248 bicubic, crop 224" in " ".join((workplace / "own.toml").read_text().replace("#", "").split())
    assert main(["init", "timm:deit_tiny", "--out", "other.toml"]) == 2
    assert "deit_tiny_patch16_224" in capsys.readouterr().err
    assert not (workplace / "other.toml").exists()


def test_odd_texts_are_written_so_that_they_are_read_again() -> None:
    for value in ('a"b\\c', "tab\tline\nend\x7f", "Grüße", {"a b": [1, True, 0.5]}, {}, []):
        assert tomllib.loads(f"x = {toml(value)}")["x"] == value
