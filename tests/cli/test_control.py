"""Widths by pattern, the dry run, the guard and the accuracy target, from the command line."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from clcalib.cli import main
from clcalib.cli.flags import quantization_flags, with_patterns
from clcalib.cli.given import WidthFlags
from clcalib.errors import ArgumentError
from clcalib.report.record import read_record

Capture = pytest.CaptureFixture[str]
PATTERNS = ["--bits", "W2A4", "--bits", "3=W4A8", "--float", "@linear", "--first-last-bits", "same"]


def rows(text: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.split("│")] for line in text.splitlines() if "│" in line]


def test_describe_shows_the_widths_that_flags_and_toml_give(workplace: Path, capsys: Capture) -> None:
    with (workplace / "run.toml").open("a") as file:
        file.write('[quantization.overrides]\n"0" = "W6"\n"3" = "W7A7"\n')
    assert main(["describe", "run.toml", *PATTERNS]) == 0
    printed = capsys.readouterr().out
    assert max(len(line) for line in printed.splitlines()) <= 80
    assert rows(printed.partition("Policy")[2]) == [
        ["0", "conv2d", "6", "float", "override 0"],
        ["3", "conv2d", "4", "8", "override 3"],
        ["7", "linear", "float", "float", "override @linear"],
        ["7", "linear", "15", "override @linear"],  # of the table of what stays in float
    ]


def test_the_widths_are_kept_with_the_run(workplace: Path) -> None:
    arguments = ["quantize", "run.toml", "--recipe", "nearest", *PATTERNS, "--unit-pattern", "3", "--quiet"]
    assert main([*arguments, "--out", "out"]) == 0
    record = read_record("out/run.json")
    kept = {row.name: (row.kind, row.weight_bits, row.input_bits, row.reason) for row in record.policy}
    assert kept["0"] == ("conv2d", 2, None, "first layer (image not quantized)")
    assert kept["3"] == ("conv2d", 4, 8, "override 3")
    assert kept["7"] == ("linear", None, None, "override @linear")
    section = json.loads((workplace / "out" / "config.json").read_text())["quantization"]
    assert section["overrides"]["@linear"] == {"weights": 32, "activations": 32}
    assert (section["first_last_bits"], section["unit_patterns"]) == ("same", ["3"])
    assert main(["evaluate", "out"]) == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--bits", "W4A4", "--bits", "W2A2"], "--bits: expected one pair of widths for all layers, got W4A4 and W2A2"),
        (["--bits", "3=W9"], '--bits 3: expected "W4A8", "W4" or "A8"'),
        (["--bits", "=W4"], "--bits: expected PATTERN=WIDTHS"),
        (["--bits", "W4A4", "--weight-bits", "3"], "--weight-bits: expected 4, as --bits W4A4 says, got 3"),
        (["--bits", "W4A4", "--activation-bits", "2"], "--activation-bits: expected 4, as --bits W4A4 says, got 2"),
        (["--weight-bits", "0"], "quantization.weights: expected a whole number from 2 to 8"),
        (["--float", ""], "--float: expected a pattern of layers"),
        (["--float", "nowhere"], "overrides (--bits, --float): expected patterns that fit a layer"),
        (
            ["--submodule", "3", "--max-drop", "1"],
            "submodule: expected the whole model where an accuracy is to be kept",
        ),
        (["--float", "@depthwise"], "this network has @conv2d, @linear"),
        (["--first-last-bits", "9"], "quantization.first_last_bits: expected a whole number from 2 to 8, or 32 for"),
        (["--set", 'quantization.overrides.3="W1"'], 'quantization.overrides.3: expected "W4A8"'),
        (["--unit-pattern", "nowhere.*"], "unit_patterns (--unit-pattern): expected globs that match a module path"),
        (["--max-drop", "0"], "target.max_drop: expected a number of percentage points above 0"),
        (["--no-guard", "--guard-images", "8"], "guard.images (--guard-images): expected none without the guard"),
        (["--no-guard", "--set", "guard.tolerance=0.1"], "guard.tolerance: expected none without the guard"),
        (["--set", "guard.tolerance=-1"], "guard.tolerance: expected a share of the error with nearest rounding"),
        (["--guard-images", "32"], "guard.images: expected from 1 to 31 of the 32 calibration images"),
    ],
)
def test_what_is_wrong_is_one_message(arguments: list[str], message: str, workplace: Path, capsys: Capture) -> None:
    assert main(["quantize", "run.toml", *arguments, "--out", "out"]) == 2
    printed = capsys.readouterr().err
    assert message in printed
    assert printed.count("error: ") == 1
    assert not (workplace / "out").exists()


@pytest.mark.parametrize(
    ("line", "arguments", "message"),
    [
        ("", ["--set", "quantization.overrides=3", "--float", "3"], "quantization.overrides: expected a table"),
        ("quantization = 3", ["--float", "3", "--out", "out"], "quantization: "),
        ("run = 3", ["--dry-run"], "run: "),
    ],
)
def test_what_is_no_table_is_told(
    line: str, arguments: list[str], message: str, workplace: Path, capsys: Capture
) -> None:
    text = (workplace / "run.toml").read_text()
    (workplace / "run.toml").write_text(f"{line}\n{text}")
    assert main(["quantize", "run.toml", *arguments]) == 2
    printed = capsys.readouterr().err
    assert message in printed
    assert "internal failure" not in printed


def test_a_target_needs_evaluation_images(workplace: Path, capsys: Capture) -> None:
    lines = (workplace / "run.toml").read_text().splitlines()
    (workplace / "run.toml").write_text("\n".join(line for line in lines if "evaluation" not in line))
    assert main(["quantize", "run.toml", "--max-drop", "1", "--out", "out"]) == 2
    assert "data.evaluation: expected evaluation images with --max-drop, got none" in capsys.readouterr().err


def test_patterns_of_flags_come_behind_those_of_the_toml() -> None:
    table = {"quantization": {"overrides": {"a": "W2", "b": "W3"}}}
    found = with_patterns(table, WidthFlags(["W4A4", "a=W8"], ["c*"]))
    assert list(found["quantization"]["overrides"].items()) == [("b", "W3"), ("a", "W8"), ("c*", "float")]
    assert with_patterns(table, WidthFlags(["W4A4"])) is table
    assert quantization_flags(WidthFlags(["a=W8"], edge_bits="6"))["first_last_bits"] == 6
    given = quantization_flags(WidthFlags(["W4A4", "a=W8"], weight_bits=4))
    assert (given["weights"], given["activations"]) == (4, 4)
    given = quantization_flags(WidthFlags(activation_bits=3))
    assert (given["weights"], given["activations"]) == (None, 3)
    with pytest.raises(ArgumentError, match="one pair of widths"):
        quantization_flags(WidthFlags(["W4A4", "W2A2"]))


def test_a_dry_run_estimates_and_writes_nothing(workplace: Path, capsys: Capture) -> None:
    before = sorted(os.listdir(workplace))
    assert main(["quantize", "run.toml", "--dry-run", "--memory-budget", "1kB", "--float", "7"]) == 0
    assert [name for name in sorted(os.listdir(workplace)) if name != "__pycache__"] == before
    printed = capsys.readouterr().out
    assert max(len(line) for line in printed.splitlines()) <= 80
    table = {row[0]: row[1] for row in rows(printed.partition("Estimate")[2])}
    assert table["0"] == table["3"] == table["7"] == "12"
    assert {"capture", "weight ranges", "measures", "evaluation", "all"} <= set(table)
    assert "at the peak" in printed
    assert "disk:   0B" not in printed
    assert "layers: 7" in printed
    assert printed.rstrip().endswith("Nothing was written.")
    assert "--max-drop" not in printed
    assert main(["quantize", "run.toml", "--dry-run", "--max-drop", "5"]) == 0
    assert "time:   of one run; --max-drop takes up to 8" in capsys.readouterr().out


def test_the_accuracy_target_shows_its_rounds(workplace: Path, capsys: Capture) -> None:
    arguments = ["quantize", "run.toml", "--recipe", "nearest", "--bits", "W2A2", "--max-drop", "99", "--out", "out"]
    assert main(arguments) == 0
    record = read_record("out/run.json")
    assert record.target is not None
    assert (record.target.is_met, record.target.images, record.evaluation_images) == (True, 10, 10)
    assert json.loads((workplace / "out" / "config.json").read_text())["target"] == {"max_drop": 99.0, "rounds": 6}
    assert "Rounds: at most 99 points of top-1 lost on 10 deciding images" in " ".join(capsys.readouterr().out.split())


def test_calibration_images_can_be_kept_aside_for_the_guard(workplace: Path) -> None:
    arguments = ["quantize", "run.toml", "--guard-images", "16", "--out", "out", "--quiet"]
    assert main(arguments) == 0
    record = read_record("out/run.json")
    assert record.calibration_images == 16
    assert record.units[0].reconstruction_error.held_out is not None


def test_the_package_is_the_command() -> None:
    finished = subprocess.run(
        [sys.executable, "-m", "clcalib", "--version"], capture_output=True, text=True, check=True
    )
    assert finished.stdout.startswith("clcalib ")
