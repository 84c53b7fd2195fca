"""The benchmark of a GPU, as far as it goes without one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

SCRIPT = Path(__file__).parent.parent / "benchmarks" / "gpu_speed.py"
pytestmark = pytest.mark.skipif(not SCRIPT.exists(), reason="the benchmarks are not part of this copy")


@pytest.fixture
def gpu_speed(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(str(SCRIPT.parent))
    return pytest.importorskip("gpu_speed")


def test_it_is_skipped_where_there_is_no_device() -> None:
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(SCRIPT.parent.parent / "src")}
    finished = subprocess.run(
        [sys.executable, str(SCRIPT)], env=environment, capture_output=True, text=True, timeout=120
    )
    assert (finished.returncode, finished.stdout.strip()) == (0, "skipped: no CUDA device"), finished.stderr


def test_runs_are_compared_bit_for_bit(gpu_speed) -> None:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.Linear(2, 2))
    first = gpu_speed.fingerprints(model)
    same = gpu_speed.compared([first, gpu_speed.fingerprints(model)])
    assert same["identical"]
    assert len(set(same["digests"])) == 1
    with torch.no_grad():
        model[1].bias[0] = torch.nextafter(model[1].bias[0], torch.tensor(9.0))
    other = gpu_speed.compared([first, first, gpu_speed.fingerprints(model)])
    assert not other["identical"]
    assert other["different_tensors"] == ["1.bias"]


def test_what_is_extrapolated_says_so(gpu_speed) -> None:
    profiler = gpu_speed.UnitProfiler(gpu_speed.Clock("cpu"), "b")
    profiler.result = {"kernel_ms_per_step": 1.5, "wall_ms_per_step": 3.0}
    found = gpu_speed.summary(gpu_speed.Settings(1024, 300, 3), {"a": 1.0, "b": 2.0}, 10.0, profiler)
    assert found["seconds_at_20000_steps"] == {"seconds": 69.1, "is_extrapolated": True, "from_steps": 300}
    assert found["steps_per_second"] == {"a": 1000.0, "b": 500.0}
    assert found["share_not_gpu_bound"]["under_the_profiler"] == 0.5
    assert found["share_not_gpu_bound"]["kernels_against_unprofiled_steps"] == 0.25
    full = gpu_speed.summary(gpu_speed.Settings(1024, 20_000, 3), {"b": 2.0}, 50.0, profiler)
    assert full["seconds_at_20000_steps"] == {"seconds": 50.0, "is_extrapolated": False, "from_steps": 20_000}
