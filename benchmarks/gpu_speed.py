"""How fast QDrop with the contrastive term is on a GPU, what CUDA graphs gain, how much of a step is not the GPU's, and
whether bits repeat.

    python benchmarks/gpu_speed.py             # three runs of 300 steps a unit; 20,000 are extrapolated
    python benchmarks/gpu_speed.py --full      # three runs of 20,000 steps
    python benchmarks/gpu_speed.py --quick     # whether it works; the numbers mean nothing

ResNet-18 with random weights, random images of 224 x 224, W2A2, batch 32, the term at every fourth step on eight images
of the batch.  A step's time is that between the first and the last reported step of a unit, by CUDA events, the least
of the runs; it contains the unit's share of what recording CUDA graphs takes, which weighs more at 300 steps than at
20,000.  As many runs of at most 300 steps go without graphs (``CLCALIB_GRAPHS=0``); it is told whether graphs were
used, and if not, why.  One more run is profiled for fifty steps of its middle unit.  The runs have one seed: their
codes and scales are compared bit for bit.  Where there is no CUDA device this says so and does nothing.  Writes
``benchmarks/results/gpu_speed.json``.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import hashlib
import importlib
import os
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

import clcalib
from clcalib.calibrate import device_step
from clcalib.errors import SlowPathWarning
from clcalib.fused import device as fused
from common import commit, provenance, write_result
from step_clock import Clock, StepTimer

SKIPPED = "skipped: no CUDA device"
BITS, BATCH, RUNS = 2, 32, 3
PAPER_STEPS = 20_000
CONTRASTIVE = {"interval": 4, "images": 8}
SHORT = 300  # steps in which every kind of step is recorded, and a unit is profiled
PROFILED = (150, 200)  # steps at which the loop reports, so that an observer can begin and end there


@dataclasses.dataclass(frozen=True)
class Settings:
    images: int
    steps: int
    runs: int
    size: int = 224


class UnitProfiler(StepTimer):
    """Profiles some steps of one unit: the time of what ran on the device, and the time that passed."""

    def __init__(self, clock: Clock, unit: str) -> None:
        super().__init__(clock)
        self.unit, self.result = unit, dict[str, Any]()
        self._profiler: profile | None = None
        self._start = 0.0

    def step(self, step: int, losses: Mapping[str, float]) -> None:
        super().step(step, losses)
        if self._name == self.unit and step == PROFILED[0]:
            self._profiler = profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA])
            self._profiler.start()
            torch.cuda.synchronize()
            self._start = time.perf_counter()
        elif step == PROFILED[1] and self._profiler is not None:
            torch.cuda.synchronize()
            wall = time.perf_counter() - self._start
            self._profiler.stop()
            self.result = kernel_times(self._profiler, wall, PROFILED[1] - PROFILED[0])
            self._profiler = None


def kernel_times(profiler: profile, wall: float, steps: int) -> dict[str, Any]:
    on_device = [event for event in profiler.events() if event.device_type == DeviceType.CUDA]
    on_device = [event for event in on_device if not getattr(event, "is_user_annotation", False)]
    by_name: dict[str, float] = {}
    for event in on_device:
        by_name[event.name] = by_name.get(event.name, 0.0) + event.time_range.elapsed_us()
    total = sum(by_name.values())
    if not total:
        return {"problem": "the profiler saw no kernel; is it allowed to, and the only one?"}
    return {
        "steps": steps,
        "kernels_per_step": round(len(on_device) / steps, 1),
        "kernel_ms_per_step": total / steps / 1e3,
        "wall_ms_per_step": wall / steps * 1e3,
        "largest_kernels": {name: round(time / total, 4) for name, time in largest(by_name, 16)},
    }


def largest(row: Mapping[str, float], count: int) -> list[tuple[str, float]]:
    return sorted(row.items(), key=lambda item: -item[1])[:count]


def float_network() -> torch.nn.Module:
    torch.manual_seed(0)
    return importlib.import_module("torchvision.models").resnet18(weights=None).eval()


def calibration_set(settings: Settings) -> clcalib.CalibrationSet:
    generator = torch.Generator().manual_seed(0)
    return clcalib.CalibrationSet.from_tensor(
        torch.randn(settings.images, 3, settings.size, settings.size, generator=generator)
    )


def run(calibration: clcalib.CalibrationSet, steps: int, device: str, observer: StepTimer) -> torch.nn.Module:
    recipe = clcalib.with_contrastive(clcalib.recipes.qdrop(steps=steps, batch_size=BATCH), **CONTRASTIVE)
    bits = clcalib.Bits(BITS, BITS)
    settings = {"recipe": recipe, "bits": bits, "measured_images": 0, "device": device, "observer": observer, "seed": 0}
    return clcalib.quantize(float_network(), calibration, **settings).model


def fingerprints(model: torch.nn.Module) -> dict[str, str]:
    """A digest of the bytes of each tensor: codes, scales, zero points, biases."""
    found = {}
    for name, tensor in sorted(model.state_dict().items()):
        data = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
        found[name] = hashlib.sha256(data).hexdigest()
    return found


def compared(runs: Sequence[Mapping[str, str]]) -> dict[str, Any]:
    digests = [hashlib.sha256("\n".join(f"{name} {row[name]}" for name in row).encode()).hexdigest() for row in runs]
    different = [name for name in runs[0] if len({row[name] for row in runs}) > 1]
    return {"runs": len(runs), "identical": not different, "digests": digests, "different_tensors": different[:16]}


@contextlib.contextmanager
def watched_graphs() -> Iterator[dict[str, Any]]:
    """How many graphs are recorded and how often they are played, and why some are not."""
    found: dict[str, Any] = {"recorded": 0, "played": 0, "warnings": []}
    original = device_step.RECORDERS["cuda"]

    class Watched(device_step.CudaGraphs):
        def record(self, work: Callable[[], object]) -> Callable[[], None]:
            replay = super().record(work)
            found["recorded"] += 1

            def play() -> None:
                found["played"] += 1
                replay()

            return play

    device_step.RECORDERS["cuda"] = Watched
    try:
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            yield found
    finally:
        device_step.RECORDERS["cuda"] = original
        found["warnings"] = [str(one.message) for one in told if issubclass(one.category, SlowPathWarning)]


@contextlib.contextmanager
def without_graphs() -> Iterator[None]:
    before = os.environ.get("CLCALIB_GRAPHS")
    os.environ["CLCALIB_GRAPHS"] = "0"
    try:
        yield
    finally:
        os.environ.pop("CLCALIB_GRAPHS")
        if before is not None:
            os.environ["CLCALIB_GRAPHS"] = before


@dataclasses.dataclass
class Runs:
    """Runs of one seed: the least milliseconds per step by unit, the seconds of each, and what came out."""

    best: dict[str, float] = dataclasses.field(default_factory=dict)
    seconds: list[float] = dataclasses.field(default_factory=list)
    found: list[dict[str, str]] = dataclasses.field(default_factory=list)

    def add(self, calibration: clcalib.CalibrationSet, steps: int, device: str, clock: Clock) -> None:
        timer, start = StepTimer(clock), time.perf_counter()
        self.found.append(fingerprints(run(calibration, steps, device, timer)))
        times = timer.milliseconds
        self.seconds.append(time.perf_counter() - start)
        self.best = {unit: min(self.best.get(unit, value), value) for unit, value in times.items()}


def measure(settings: Settings, device: str) -> dict[str, Any]:
    calibration, clock = calibration_set(settings), Clock(device)
    played, one_by_one, short = Runs(), Runs(), min(settings.steps, SHORT)
    with watched_graphs() as graphs:
        for _ in range(settings.runs):
            played.add(calibration, settings.steps, device, clock)
            with without_graphs():
                one_by_one.add(calibration, short, device, clock)
        profiler = UnitProfiler(clock, list(played.best)[len(played.best) // 2])
        run(calibration, SHORT, device, profiler)
    same = [*played.found, *one_by_one.found] if short == settings.steps else played.found
    use = {"graphs": graph_use(graphs, played.best, one_by_one.best), "repetition": compared(same)}
    return summary(settings, played.best, min(played.seconds), profiler) | use


def graph_use(
    graphs: Mapping[str, Any], played: Mapping[str, float], one_by_one: Mapping[str, float]
) -> dict[str, Any]:
    """Whether graphs were used, and how many times as fast a step is with them."""
    ratios = {unit: round(one_by_one[unit] / value, 3) for unit, value in played.items()}
    whole = sum(one_by_one.values()) / sum(played.values())
    return {
        "used": graphs["played"] > 0,
        **graphs,
        "milliseconds_per_step_one_by_one": {unit: round(value, 4) for unit, value in one_by_one.items()},
        "times_as_fast": {**ratios, "all units": round(whole, 3)},
    }


def summary(settings: Settings, best: Mapping[str, float], total: float, profiler: UnitProfiler) -> dict[str, Any]:
    step_seconds = sum(best.values()) / 1e3
    profiled = profiler.result

    def idle(step: float | None) -> float | None:  # None where the driver lets nobody profile
        return None if step is None else round(1 - profiled["kernel_ms_per_step"] / step, 4)

    is_extrapolated = settings.steps != PAPER_STEPS
    return {
        "steps_per_second": {unit: round(1e3 / value, 2) for unit, value in best.items()},
        "milliseconds_per_step": {unit: round(value, 4) for unit, value in best.items()},
        "whole_run_seconds": round(total, 2),
        f"seconds_at_{PAPER_STEPS}_steps": {
            "seconds": round(total + (PAPER_STEPS - settings.steps) * step_seconds, 1),
            "is_extrapolated": is_extrapolated,
            "from_steps": settings.steps,
        },
        "share_not_gpu_bound": {
            "unit": profiler.unit,
            "under_the_profiler": idle(profiled.get("wall_ms_per_step")),
            "kernels_against_unprofiled_steps": idle(best[profiler.unit] if "kernel_ms_per_step" in profiled else None),
            **profiled,
        },
    }


def read_arguments() -> Settings:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=1024)
    parser.add_argument(
        "--steps", type=int, default=SHORT, help="for each unit; what 20,000 would take is extrapolated"
    )
    parser.add_argument("--full", action="store_true", help="20,000 steps for each unit")
    parser.add_argument("--quick", action="store_true", help="a smoke run, which writes no result")
    given = parser.parse_args()
    if given.quick:
        return Settings(64, SHORT, 2, 64)
    return Settings(given.images, PAPER_STEPS if given.full else given.steps, RUNS)


def main() -> None:
    settings, at_start = read_arguments(), commit()
    if not torch.cuda.is_available():
        print(SKIPPED)
        return
    device = "cuda"
    result = {
        **measure(settings, device),
        "fused_kernels": fused.is_available(torch.device(device, torch.cuda.current_device())),
        "bits": BITS,
        "batch": BATCH,
        "contrastive": CONTRASTIVE,
        **dataclasses.asdict(settings),
        **provenance(commit=at_start, device=torch.cuda.get_device_name(), cuda=torch.version.cuda, seed=0),
    }
    for name in ("steps_per_second", f"seconds_at_{PAPER_STEPS}_steps", "graphs", "share_not_gpu_bound", "repetition"):
        print(f"{name}: {result[name]}")
    if settings.size == Settings.size:
        print(write_result("gpu_speed", result))


if __name__ == "__main__":
    main()
