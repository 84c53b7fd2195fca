"""The commands, end to end on a tiny network: what they print, what they leave, what they return."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch

import clcalib
from clcalib.cli import main
from clcalib.report.record import read_record

Capture = pytest.CaptureFixture[str]


def test_describe_prints_every_unit_and_the_totals(workplace: Path, capsys: Capture) -> None:
    assert main(["describe", "--model", "net.py:build", "--shape", "3,8,8", "--unit", "layer"]) == 0
    printed = capsys.readouterr().out
    units, widths = printed.split("Policy")
    rows = [[cell.strip() for cell in line.split("│")] for line in units.splitlines() if "│" in line]
    assert [row[1] for row in rows] == ["0", "3", "7", "total"]
    assert rows[0][3:] == ["3x8x8 -> 4x8x8", "1", "112", "6.91k"]
    assert rows[-1][4:] == ["3", "275", "16.1k"]
    layers = [[cell.strip() for cell in line.split("│")] for line in widths.splitlines() if "│" in line]
    assert [row[:4] for row in layers] == [
        ["0", "conv2d", "8", "float"],
        ["3", "conv2d", "4", "4"],
        ["7", "linear", "8", "8"],
    ]


def test_describe_takes_the_shape_from_the_images_of_a_toml(workplace: Path, capsys: Capture) -> None:
    assert main(["describe", "run.toml"]) == 0
    assert "3x8x8 -> " in capsys.readouterr().out


def test_quantize_leaves_a_model_a_record_and_its_configuration(workplace: Path, capsys: Capture) -> None:
    threads, state = torch.get_num_threads(), torch.get_rng_state()
    arguments = ["quantize", "run.toml", "--bits", "W3A2", "--contrastive", "--seed", "7", "--threads", "1"]
    assert main([*arguments, "--memory-budget", "1MB", "--out", "runs/a"]) == 0
    assert torch.get_num_threads() == threads
    assert torch.equal(torch.get_rng_state(), state)

    out = workplace / "runs" / "a"
    assert sorted(os.listdir(out)) == [
        "config.json",
        "model.json",
        "model.safetensors",
        "report.html",
        "report.json",
        "run.json",
        "trace.json",
    ]
    record = read_record(out / "run.json")
    assert (record.weight_bits, record.activation_bits, record.seed, record.threads) == (3, 2, 7, 1)
    assert record.steps_per_unit == 12
    assert record.contrastive is not None
    assert record.evaluation_images == 20
    assert record.units[0].reconstruction_error.held_out is not None
    section = json.loads((out / "config.json").read_text())["run"]
    assert (section["seed"], section["memory_budget"]) == (7, 1_000_000)

    printed = capsys.readouterr()
    assert printed.out.index("Policy") < printed.out.index("Units") < printed.out.index("Summary")
    assert "qdrop + CL" in printed.out
    assert str(out / "run.json") in printed.out
    assert "unit 1 of 3" in printed.err
    assert max(len(line) for line in printed.out.splitlines() if str(out) not in line) <= 80


def test_a_submodule_is_described_and_quantized_within_its_model(workplace: Path, capsys: Capture) -> None:
    assert main(["describe", "run.toml", "--submodule", "3"]) == 0
    assert "4x8x8" in capsys.readouterr().out.replace(" ", "")
    assert main(["quantize", "run.toml", "--submodule", "3", "--out", "out"]) == 0
    record = read_record(workplace / "out" / "run.json")
    assert (record.submodule, [unit.layers for unit in record.units]) == ("3", [("weight",)])
    capsys.readouterr()
    assert main(["evaluate", "out"]) == 0
    assert "quantized" in capsys.readouterr().out


def test_biases_by_flag(workplace: Path, capsys: Capture) -> None:
    assert main(["quantize", "run.toml", "--biases", "--out", "out"]) == 0
    assert read_record(workplace / "out" / "run.json").recipe == "qdrop+biases"
    assert "qdrop + biases" in capsys.readouterr().out
    assert main(["quantize", "run.toml", "--recipe", "nearest", "--biases", "--out", "other"]) == 2
    assert "biases: recipe: expected one that optimises something, got nearest" in capsys.readouterr().err


def test_tuning_by_flag(workplace: Path, capsys: Capture) -> None:
    assert main(["quantize", "run.toml", "--biases", "--tuning", "--set", "tuning.steps=6", "--out", "out"]) == 0
    record = read_record(workplace / "out" / "run.json")
    assert record.recipe == "qdrop+biases+tuning"
    assert record.last_phase is not None
    assert (record.last_phase.steps, record.last_phase.changed_codes) == (6, 0.0)
    assert "qdrop + biases + tuning" in capsys.readouterr().out
    arguments = ["quantize", "run.toml", "--tuning", "--workers", "2", "--split", "units", "--out", "other"]
    assert main(arguments) == 2
    assert "--tuning: expected none, as it trains the whole network at once" in capsys.readouterr().err


def test_augmentation_and_last_phase_by_flags(workplace: Path, capsys: Capture) -> None:
    arguments = ["quantize", "run.toml", "--augment", "flip, cutmix", "--augment-copies", "2", "--out", "out"]
    assert main([*arguments, "--last-phase", "--set", "last_phase.steps=6"]) == 0
    record = read_record(workplace / "out" / "run.json")
    section = json.loads((workplace / "out" / "config.json").read_text())["data"]
    assert (section["augment"], section["augment_copies"]) == (["flip", "cutmix"], 2)
    assert record.calibration_images % 3 == 0
    assert record.last_phase is not None
    assert record.last_phase.steps == 6
    printed = capsys.readouterr()
    assert "unit 1 of 1  whole network" in printed.err
    assert "qdrop + last phase" in printed.out


def test_evaluate_gives_what_the_run_recorded(workplace: Path, capsys: Capture) -> None:
    assert main(["quantize", "run.toml", "--bits", "W2A2", "--out", "out", "--quiet"]) == 0
    printed = capsys.readouterr()
    record = read_record("out/run.json")
    assert record.quantized_top1 is not None
    assert record.float_top1 is not None
    assert record.agreement is not None
    accuracies = f"top-1 {100 * record.quantized_top1:.2f} % (float {100 * record.float_top1:.2f} %)"
    line = f"{workplace / 'out'}: qdrop W2A2, {accuracies}, agreement {100 * record.agreement:.2f} %\n"
    assert (printed.out, printed.err) == (line, "")
    assert main(["evaluate", "out"]) == 0
    rows = [[cell.strip() for cell in line.split("│")] for line in capsys.readouterr().out.splitlines()]
    assert ["quantized", f"{100 * record.quantized_top1:.2f}", f"{100 * record.agreement:.2f}"] in rows


def test_evaluate_works_for_a_model_saved_from_python(workplace: Path, capsys: Capture) -> None:
    (workplace / "out").mkdir()
    assert main(["quantize", "run.toml", "--recipe", "nearest", "--out", "out", "--quiet"]) == 0
    (workplace / "out" / "config.json").unlink()
    capsys.readouterr()
    assert main(["evaluate", "out", "--model", "net.py:build", "--evaluation", "evaluation.safetensors"]) == 0
    printed = capsys.readouterr().out
    assert "quantized" in printed
    assert "float" not in printed


def test_flags_win_over_assignments_and_these_over_the_toml(workplace: Path) -> None:
    arguments = ["quantize", "run.toml", "--set", "recipe.steps=9", "--set", "run.seed=4", "--seed", "5", "--quiet"]
    assert main([*arguments, "--no-contrastive", "--set", "contrastive.weight=2", "--out", "out"]) == 0
    record = read_record("out/run.json")
    assert (record.steps_per_unit, record.seed, record.contrastive) == (9, 5, None)


def test_options_of_a_replaced_recipe_are_left_out_with_a_warning(workplace: Path, capsys: Capture) -> None:
    assert main(["quantize", "run.toml", "--recipe", "nearest", "--out", "out", "--quiet"]) == 0
    assert "warning: nearest has no option steps" in capsys.readouterr().err
    assert read_record("out/run.json").recipe == "nearest"


def test_warnings_are_short_lines_and_are_collected(workplace: Path, capsys: Capture) -> None:
    assert main(["quantize", "run.toml", "--set", "data.count=4", "--no-guard", "--out", "out", "--quiet"]) == 0
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("warning: calibration holds 4")
    assert [f"warning: {text}" for text in read_record("out/run.json").warnings] == lines


def test_an_existing_output_is_kept_unless_told(workplace: Path, capsys: Capture) -> None:
    (workplace / "out").mkdir()
    (workplace / "out" / "thesis.txt").write_text("precious")
    assert main(["quantize", "run.toml", "--out", "out"]) == 3
    assert "error: " in capsys.readouterr().err
    assert os.listdir(workplace / "out") == ["thesis.txt"]
    assert main(["quantize", "run.toml", "--recipe", "nearest", "--out", "out", "--overwrite", "--quiet"]) == 0
    assert (workplace / "out" / "thesis.txt").read_text() == "precious"
    assert (workplace / "out" / "run.json").is_file()


def test_version_and_help(capsys: Capture) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"clcalib {clcalib.__version__}\n"
    for command in ([], ["describe"], ["quantize"], ["evaluate"], ["data", "cifar10"]):
        assert main([*command, "--help"]) == 0
        printed = capsys.readouterr().out
        assert "Usage: clcalib" in printed
        assert "Example" in printed or not command
    assert main([]) == 0
    assert "quantize" in capsys.readouterr().out


def test_data_brings_cifar10(workplace: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def fetch(out: Path, *, method: str) -> Path:
        asked.append((out, method))
        return out

    monkeypatch.setattr("clcalib.cli.actions.data.fetch_cifar10", fetch)
    assert main(["data", "cifar10", "--out", "here", "--method", "torchvision"]) == 0
    assert asked == [(Path("here"), "torchvision")]
    assert "here" in capsys.readouterr().out
