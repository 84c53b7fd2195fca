"""``clcalib doctor``: broken and missing packages are findings, and the base decides."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from clcalib.cli import findings, main
from clcalib.cli.findings import NEEDED, PACKAGES, Check, Package, package_findings, target_findings, try_imports
from clcalib.quant.targets import TARGETS

Capture = pytest.CaptureFixture[str]


def test_every_target_says_what_it_needs_and_every_extra_exists() -> None:
    assert set(NEEDED) == {name for name, target in TARGETS.items() if not target.is_range_reduced}
    assert set(target_findings([])) == set(TARGETS)
    assert {name for names in NEEDED.values() for name in names} <= set(PACKAGES)
    project = (Path(__file__).parents[2] / "pyproject.toml").read_text()
    for package, (extra, _) in PACKAGES.items():
        line = next(line for line in project.splitlines() if line.startswith(f"{extra} = ["))
        assert package in line


def test_packages_that_are_broken_end_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "broken_one.py").write_text("raise RuntimeError('first line\\nsecond line')")
    (tmp_path / "broken_two.py").write_text("import os\nprint('[not json')\nos._exit(9)")
    (tmp_path / "sound_one.py").write_text("")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    assert try_imports(["broken_one", "broken_two", "sound_one"]) == {
        "broken_one": "RuntimeError: first line",
        "broken_two": "importing it ended the process with code 9",
        "sound_one": "",
    }


def test_a_file_in_the_current_folder_is_not_taken_for_a_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "scipy.py").write_text("open('canary', 'w').close()")
    monkeypatch.chdir(tmp_path)
    try_imports(["scipy"])
    assert not (tmp_path / "canary").exists()


def test_what_is_missing_comes_with_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(findings, "_version", lambda name: None if name == "openvino" else "1.0")
    monkeypatch.setattr(findings, "try_imports", lambda names: {"onnx": "ImportError: no such symbol"})
    found = {package.name: package for package in package_findings()}
    assert (found["openvino"].version, found["openvino"].install) == (None, "pip install 'clcalib[openvino]'")
    assert not found["onnx"].is_usable
    lacking = target_findings(list(found.values()))
    assert lacking["openvino"] == "onnx, openvino"
    assert lacking["torch"] == ""


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """The packages as if they had been looked at, which takes seconds."""
    packages = [
        Package("timm", "1.0", "networks by name", "pip install 'clcalib[vision]'", ""),
        Package("onnx", "1.2", "writing ONNX files", "pip install 'clcalib[onnx]'", "ImportError: no such symbol"),
        Package("openvino", None, "target openvino", "pip install 'clcalib[openvino]'", ""),
    ]
    monkeypatch.setattr(findings, "package_findings", lambda: packages)


def test_it_shows_all_of_it_and_json_is_one_document(
    quick: None, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert main(["doctor"]) == 0
    printed = capsys.readouterr().out
    for text in ("torch 2.", "a tiny network was quantized", "missing", "broken", "ImportError: no such symbol",
                 "pip install 'clcalib[openvino]'", "compiled kernels: ", "free on this disk"):  # fmt: skip
        assert text in printed, text
    assert main(["doctor", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["base"]["is_well"] is True
    assert found["targets_lacking"]["openvino"] == "onnx, openvino"
    assert found["processor"]["cores"] >= found["processor"]["usable_cores"] >= 1


def test_a_base_that_does_not_work_is_told_by_the_exit_code(
    quick: None, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(findings, "base_check", lambda: Check(False, "a tiny network cannot be quantized: OSError"))
    assert main(["doctor"]) == 1
    assert "cannot be quantized: OSError" in capsys.readouterr().out


def test_a_failure_of_the_base_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: object, **kwargs: object) -> None:
        raise OSError("no\nroom")

    monkeypatch.setattr(findings, "quantize", fail)
    assert findings.base_check() == Check(False, "a tiny network cannot be quantized: OSError: no")
