"""What one optimisation step costs, unit by unit, and where the time goes: the base line of all work on speed.

    python benchmarks/step_cost.py

ResNet-20, W2A2, batch 32, one thread, CPU time (not wall time) between the first and the last reported step of each
unit; the recipes are run one after the other, the whole round several times, and the smallest time of each unit counts.
Writes ``benchmarks/results/step_cost.json``.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

import torch
from torch.profiler import ProfilerActivity, profile

import clcalib
from clcalib.quant.policy import LayerPolicy
from common import provenance, resnet20, write_result

STEPS, ROUNDS, IMAGES = 51, 3, 128
CONTRASTIVE = {"contrastive": 1, "contrastive, every 4th step": 4}


class StepTimer:
    """An observer that keeps the CPU time at the first and the last reported step of each unit."""

    def __init__(self) -> None:
        self.milliseconds: dict[str, float] = {}
        self._name = ""
        self._first: tuple[int, float] | None = None

    def stage(self, name: str) -> None: ...

    def policy(self, rows: Sequence[LayerPolicy]) -> None: ...

    def unit_started(self, index: int, count: int, name: str, kind: str, steps: int) -> None:
        self._name, self._first = name, None

    def step(self, step: int, losses: Mapping[str, float]) -> None:
        now = time.process_time()
        if self._first is None:
            self._first = (step, now)
        elif step > self._first[0]:
            self.milliseconds[self._name] = 1e3 * (now - self._first[1]) / (step - self._first[0])

    def unit_finished(self, index: int, name: str, error_before: float, error_after: float) -> None: ...


def recipes() -> dict[str, clcalib.Recipe]:
    qdrop = clcalib.recipes.qdrop(steps=STEPS)
    made = {"qdrop": qdrop}
    for name, interval in CONTRASTIVE.items():
        made[f"qdrop + {name}"] = clcalib.with_contrastive(qdrop, interval=interval)
    made["adaround"] = clcalib.recipes.adaround(steps=STEPS)
    return made


def measure(calibration: clcalib.CalibrationSet) -> dict[str, dict[str, float]]:
    best: dict[str, dict[str, float]] = {}
    for _ in range(ROUNDS):
        for name, recipe in recipes().items():
            timer = StepTimer()
            quantize(calibration, recipe, timer)
            row = best.setdefault(name, dict(timer.milliseconds))
            for unit, value in timer.milliseconds.items():
                row[unit] = min(row[unit], value)
    return best


def quantize(calibration: clcalib.CalibrationSet, recipe: clcalib.Recipe, observer: StepTimer | None = None) -> None:
    torch.manual_seed(0)
    model, bits = resnet20().eval(), clcalib.Bits(2, 2)
    clcalib.quantize(model, calibration, recipe=recipe, bits=bits, measured_images=0, observer=observer)


def operators(calibration: clcalib.CalibrationSet) -> list[dict[str, float | str]]:
    """The operators of a whole QDrop run, by their own CPU time."""
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        quantize(calibration, clcalib.recipes.qdrop(steps=STEPS))
    rows = sorted(profiler.key_averages(), key=lambda row: -row.self_cpu_time_total)
    total = sum(row.self_cpu_time_total for row in rows)
    return [
        {"operator": row.key, "share": round(row.self_cpu_time_total / total, 4), "calls": row.count}
        for row in rows[:20]
    ]


def main() -> None:
    torch.set_num_threads(1)
    images = torch.randn(IMAGES, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    calibration = clcalib.CalibrationSet.from_tensor(images)
    units = measure(calibration)
    means = {name: round(sum(row.values()) / len(row), 2) for name, row in units.items()}
    rounded = {name: {unit: round(value, 2) for unit, value in row.items()} for name, row in units.items()}
    result = {
        "milliseconds_per_step": means,
        "milliseconds_per_step_and_unit": rounded,
        "operators_of_a_qdrop_run": operators(calibration),
        "batch": 32,
        **provenance(seed=0),
    }
    print(write_result("step_cost", result))
    for name, value in means.items():
        print(f"{name:40} {value:8.2f} ms a step, mean over units")


if __name__ == "__main__":
    main()
