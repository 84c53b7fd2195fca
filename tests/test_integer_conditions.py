"""The conditions of integer kernels: the page says what the JSON does, and the JSON what the runtimes do."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
BENCHMARKS = ROOT / "benchmarks"

pytestmark = pytest.mark.skipif(not BENCHMARKS.is_dir(), reason="the benchmarks are not part of this copy")


def run(script: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(BENCHMARKS / script), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_the_page_is_that_of_the_json() -> None:
    done = run("integer_conditions_page.py", "--check")
    assert done.returncode == 0, done.stderr


def test_a_group_of_cases_runs_and_writes_nothing() -> None:
    result = BENCHMARKS / "results" / "integer_conditions.json"
    before = result.read_bytes()
    done = run("integer_conditions.py", "--only", "Gemm")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == 8
    assert any(line.split()[-1] == "QGemm" and "int32 bias, output in float" in line for line in lines)
    assert result.read_bytes() == before
