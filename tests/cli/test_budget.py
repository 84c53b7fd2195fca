"""Widths within a budget, from the command line: what is printed, kept and refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.processors import here

from clcalib.cli import main
from clcalib.report.record import read_record

Capture = pytest.CaptureFixture[str]
# 4 x 3 x 9 weights at 8 bits, 4 x 4 x 9 at b bits, 3 x 4 at 8 bits, and 8 bytes for each of 11 channels.
SETTLED, FREE = 108 + 12 + 88, 144


def rows(text: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.split("│")] for line in text.splitlines() if "│" in line]


def quantize(*arguments: str) -> int:
    return main(["quantize", "run.toml", "--recipe", "nearest", "--bits", "W8A8", *arguments])


def test_the_widths_fit_the_budget_and_are_printed_and_kept(workplace: Path, capsys: Capture) -> None:
    budget = SETTLED + FREE * 4 // 8
    assert quantize("--size-budget", f"{budget}B", "--out", "out") == 0
    printed = capsys.readouterr().out
    assert max(len(line) for line in printed.splitlines() if not line.startswith(str(workplace))) <= 80
    policy = rows(printed.partition("Policy")[2])
    assert policy[1][:3] == ["3", "conv2d", policy[1][2]]
    assert policy[1][-1] == "chosen within the budget"
    assert f"Widths: at most {budget} bytes" in printed
    found = read_record("out/run.json").budget
    assert found is not None
    (free,) = [unit for unit in found.units if unit.widths is not None]
    assert free.widths is not None
    assert free.widths[1] == policy[1][2]
    assert found.size <= budget
    assert len(free.sensitivities) == 5
    section = json.loads((workplace / "out" / "config.json").read_text())["budget"]
    assert (section["size"], section["cost"], section["weights"]) == (budget, None, [2, 3, 4, 6, 8])
    assert main(["evaluate", "out"]) == 0


def test_the_section_of_the_toml_and_a_share_of_the_operations(workplace: Path, capsys: Capture) -> None:
    with (workplace / "run.toml").open("a") as file:
        file.write(
            '[budget]\nweights = [2, 4]\nactivations = [4, 8]\nper = "layer"\nmeasure = "changed"\nimages = 16\n'
        )
    assert quantize("--cost-budget", "0.7", "--out", "out", "--quiet") == 0
    found = read_record("out/run.json").budget
    assert found is not None
    assert found.cost <= 0.7
    assert (found.per, found.measure, found.images) == ("layer", "changed", 16)
    (free,) = [unit for unit in found.units if unit.widths is not None]
    assert set(free.sensitivities) == {"W2A4", "W4A4", "W2A8", "W4A8"}
    assert len(capsys.readouterr().out.splitlines()) == 1


def test_a_target_and_a_cost_choose_both_widths(workplace: Path, capsys: Capture) -> None:
    arguments = ["--target", here("onnxruntime"), "--cost-budget", "0.6", "--set", "budget.activations=[4,8]"]
    assert quantize(*arguments, "--set", "budget.weights=[2,8]", "--out", "out") == 0
    printed = capsys.readouterr()
    (told,) = [line for line in printed.err.splitlines() if "fewer bit operations" in line]
    assert told.startswith(f"warning: cost budget: target {here('onnxruntime')} computes codes of all widths in 8 bits")
    record = read_record("out/run.json")
    assert record.budget is not None
    assert record.budget.cost <= 0.6
    (free,) = [unit for unit in record.budget.units if unit.widths is not None]
    assert set(free.sensitivities) == {"W2A4", "W8A4", "W2A8", "W8A8"}
    (row,) = [row for row in record.policy if row.name == "3"]
    weights = "8" if row.weight_bits == 7 else str(row.weight_bits)  # 7 of 8 bits where the processor needs it
    assert free.widths == f"W{weights}A{row.input_bits}" != "W8A8"
    assert sum("fewer bit operations" in warning for warning in record.warnings) == 1
    assert record.deployment is not None
    assert (record.deployment.float_layers, record.deployment.agreement) == (0, 1)


def test_a_dry_run_shows_the_widths(workplace: Path, capsys: Capture) -> None:
    assert quantize("--size-budget", "300B", "--set", "budget.weights=[2,4]", "--dry-run") == 0
    printed = capsys.readouterr().out
    assert "Widths: at most 300 bytes" in printed
    assert "chosen within the budget" in printed
    assert [row[0] for row in rows(printed.partition("Estimate")[2])].count("widths") == 1
    assert "Nothing was written." in printed


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--size-budget", "100B"], f"size budget: expected at least {SETTLED + FREE * 2 // 8} bytes"),
        (["--size-budget", "many"], "budget.size: expected a number of bytes above 0"),
        (["--cost-budget", "0"], "budget.cost: expected a share above 0 of the bit operations"),
        (["--cost-budget", "1e-6"], "cost budget: expected at least 0."),
        (["--set", 'budget.per="unit"'], "budget: expected a size or a cost, got neither"),
        (["--cost-budget", "1", "--set", "budget.weights=[1]"], "budget.weights.0: expected "),
        (["--cost-budget", "1", "--set", "budget.weights=[]"], "weights, activations: expected candidate widths"),
        (
            ["--size-budget", "1KB", "--set", "budget.activations=[4,8]"],
            "activations: expected no candidates where only",
        ),
        (
            [
                "--cost-budget",
                "1",
                "--set",
                "budget.activations=[4,8]",
                "--target",
                "torch",
                "--set",
                "budget.weights=[8]",
            ],
            "budget.activations: expected widths that target torch has, 8 bits, got 4, 8; leave 4 out",
        ),
        (
            ["--cost-budget", "1", "--target", "tensorrt"],
            "budget.weights: expected widths that target tensorrt has, 8 bits",
        ),
        (["--cost-budget", "1", "--set", 'budget.per="channel"'], 'budget.per: expected "unit" or "layer"'),
        (["--cost-budget", "1", "--max-drop", "1"], "target, budget: expected either --max-drop or --size-budget"),
        (["--cost-budget", "1", "--submodule", "3"], "submodule: expected the whole model where widths are chosen"),
    ],
)
def test_what_is_wrong_is_one_message(arguments: list[str], message: str, workplace: Path, capsys: Capture) -> None:
    assert quantize(*arguments, "--out", "out") == 2
    printed = capsys.readouterr().err
    assert message in printed
    assert printed.count("error: ") == 1
    assert not (workplace / "out").exists()


def test_a_missing_solver_is_told_before_any_work(
    workplace: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("clcalib.quant.allocation.importlib.util.find_spec", lambda name: None)
    assert quantize("--cost-budget", "1", "--out", "out") == 2
    assert 'pip install "clcalib[mixed]"' in capsys.readouterr().err
