"""What README.md shows is run, and its numbers are those of the result files."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.tiny import images, tiny

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()


def test_the_python_example_runs(tmp_path, monkeypatch):
    (code,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    monkeypatch.chdir(tmp_path)
    names = {"model": tiny(), "images": images()}
    exec(compile(code.replace("steps=500", "steps=5"), "README.md", "exec"), names)
    assert torch.equal(names["again"](images()), names["logits"])


def test_every_command_of_the_readme_exists():
    from clcalib.cli import main

    for command in ("describe", "quantize", "evaluate", "data"):
        assert f"clcalib {command}" in README or command == "data"
        assert main([command, "--help"]) == 0


def test_linked_files_exist():
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        assert target.startswith("http") or (ROOT / target).exists(), target


def test_numbers_are_those_of_the_result_files():
    if not (ROOT / "benchmarks" / "readme.py").exists():
        pytest.skip("the benchmarks are not part of this copy")
    script = [sys.executable, str(ROOT / "benchmarks" / "readme.py"), "--check"]
    done = subprocess.run(script, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
