"""``quantize --target torch`` (and ``executorch``) and ``export`` of its result, end to end."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from tests.processors import here

from clcalib.cli import main


def test_a_run_for_torch_leaves_a_program_and_export_writes_it_again(
    workplace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("torchao", reason="the optional package that reaches PyTorch's integer kernels")
    arguments = [
        "quantize",
        "run.toml",
        "--recipe",
        "nearest",
        "--bits",
        "W8A8",
        "--target",
        here("torch"),
        "--out",
        "out",
    ]
    assert main([*arguments, "--quiet"]) == 0
    found = json.loads((workplace / "out" / "run.json").read_text())["deployment"]
    assert (found["target"], found["file"]) == (here("torch"), "model.pt2")
    assert (found["integer_layers"], found["float_layers"]) == (3, 0)
    assert found["max_code_difference"] <= 1
    assert main(["export", "out"]) != 0  # the file is there
    capsys.readouterr()
    assert main(["export", "out", "--out", "again.pt2", "--float", "float.pt2"]) == 0
    assert "3 of 3 in integers" in capsys.readouterr().out
    assert (workplace / "again.pt2").exists()
    assert (workplace / "float.pt2").exists()
    assert main(["export", "out", "--overwrite"]) == 0


@pytest.mark.slow
def test_a_run_for_executorch_leaves_a_pte_file_with_the_codes_that_were_simulated(
    workplace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("executorch", reason="the optional package that writes .pte files")
    arguments = ["quantize", "run.toml", "--recipe", "nearest", "--bits", "W8A8", "--target", "executorch"]
    assert main([*arguments, "--out", "out"]) == 0
    printed = capsys.readouterr().out
    assert "For executorch: model.pte" in printed
    assert "3 of 3 in integers" in printed
    assert "code differences" in printed
    found = json.loads((workplace / "out" / "run.json").read_text())["deployment"]
    assert (found["target"], found["file"]) == ("executorch", "model.pte")
    assert found["max_code_difference"] <= 1
    assert len(found["tensors"]) >= 4
    assert main(["export", "out", "--out", "again.pte"]) == 0
    assert (workplace / "again.pte").read_bytes() == (workplace / "out" / "model.pte").read_bytes()


def test_widths_that_torch_has_no_kernels_for_are_refused_at_once(
    workplace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["quantize", "run.toml", "--bits", "W8A4", "--target", "torch", "--out", "out"]) == 2
    assert "8 bits, or float, for target torch" in " ".join(capsys.readouterr().err.split())
    assert not (workplace / "out").exists()
