"""The kernels of a GPU where there is none: interpreted, compiled, and not to be had."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from clcalib.errors import SlowPathWarning
from clcalib.fused import device

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
CPU = torch.device("cpu")
needs_triton = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="there is no Triton here")


@pytest.fixture(autouse=True)
def _decides_anew():
    device.is_available.cache_clear()
    yield
    device.is_available.cache_clear()


def run(*arguments: str, **environment: str) -> str:
    paths = os.pathsep.join(map(str, (ROOT / "src", ROOT, ROOT / "examples")))
    own = {name: value for name, value in os.environ.items() if not name.startswith(("TRITON_", "PYTEST_", "CLCALIB_"))}
    finished = subprocess.run(
        [sys.executable, *arguments],
        cwd=ROOT,
        env={**own, "PYTHONPATH": paths, **environment},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert finished.returncode == 0, finished.stdout[-3000:] + finished.stderr[-3000:]
    return finished.stdout


@needs_triton
def test_interpreted_kernels_are_the_plain_path() -> None:
    pytest.importorskip("triton.runtime.interpreter", reason="this Triton has no interpreter")
    file = str(HERE / "triton_interpreted.py")
    printed = run("-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", file, TRITON_INTERPRET="1")
    passed = re.search(r"^(\d+) passed in", printed.splitlines()[-1])
    assert passed is not None
    assert int(passed.group(1)) >= 100


@needs_triton
@pytest.mark.slow
def test_kernels_compile_for_real_processors(tmp_path: Path) -> None:
    pytest.importorskip("triton.backends.nvidia", reason="this Triton does not compile for NVIDIA's processors")
    printed = run("-W", "error", str(HERE / "triton_compiled.py"), TRITON_CACHE_DIR=str(tmp_path))
    assert printed.count("compiled ") == 30


@needs_triton
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_kernels_that_do_not_run_are_told_once_and_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CLCALIB_NATIVE", raising=False)
    monkeypatch.setattr(device, "_computes_right", lambda device: 1 / 0)
    with pytest.warns(SlowPathWarning, match="without its fused kernels on cpu: ZeroDivisionError"):
        assert not device.is_available(CPU)
    assert not device.is_available(CPU)  # warnings are errors here
    device.is_available.cache_clear()
    monkeypatch.setattr(device, "_computes_right", lambda device: False)
    with pytest.warns(SlowPathWarning, match="their results differ"):
        assert not device.is_available(CPU)


def test_kernels_are_left_out_in_silence_where_not_wanted_or_absent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLCALIB_NATIVE", "0")
    assert not device.is_available(CPU)
    device.is_available.cache_clear()
    monkeypatch.delenv("CLCALIB_NATIVE")
    monkeypatch.setattr(device.importlib.util, "find_spec", lambda name: None)
    assert not device.is_available(CPU)


def test_tensors_on_the_cpu_are_not_for_these_kernels() -> None:
    assert not device.can_take(torch.ones(3))
