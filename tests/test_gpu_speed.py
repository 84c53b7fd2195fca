"""The benchmark of a GPU, as far as it goes without one."""

from __future__ import annotations

import os
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch

from clcalib.calibrate import device_step
from clcalib.errors import SlowPathWarning

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


def test_it_says_whether_graphs_were_used_and_what_they_gain(gpu_speed, monkeypatch) -> None:
    monkeypatch.setenv("CLCALIB_GRAPHS", "1")
    with gpu_speed.without_graphs():
        assert os.environ["CLCALIB_GRAPHS"] == "0"
    assert os.environ["CLCALIB_GRAPHS"] == "1"
    with gpu_speed.watched_graphs() as graphs:
        warnings.warn("the unit is in files", SlowPathWarning, stacklevel=1)
    assert graphs == {"recorded": 0, "played": 0, "warnings": ["the unit is in files"]}
    assert {"cuda": device_step.CudaGraphs} == device_step.RECORDERS
    found = gpu_speed.graph_use(graphs, {"a": 1.0, "b": 3.0}, {"a": 2.0, "b": 3.0})
    assert not found["used"]
    assert found["times_as_fast"] == {"a": 2.0, "b": 1.0, "all units": 1.25}
    assert gpu_speed.graph_use({**graphs, "played": 5}, {"a": 1.0}, {"a": 1.0})["used"]


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
