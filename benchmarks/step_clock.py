"""Time of this process on the CPU, of the device on CUDA; and who keeps the time of each unit's steps."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import torch

from clcalib.calibrate.observer import SilentObserver


class Clock:
    """Marks and the milliseconds between them: CPU time, or CUDA events where the device is one."""

    def __init__(self, device: str) -> None:
        self.device = torch.device(device)
        self.is_cuda = self.device.type == "cuda"

    def mark(self) -> Any:
        if not self.is_cuda:
            return time.process_time()
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self.device))
        return event

    def milliseconds(self, first: Any, last: Any) -> float:
        if not self.is_cuda:
            return 1e3 * float(last - first)
        last.synchronize()
        return float(first.elapsed_time(last))

    def name(self) -> str:
        return torch.cuda.get_device_name(self.device) if self.is_cuda else "cpu, one thread, CPU time"


DEVICE_WARM_UP = 32  # steps behind the rounding penalty's own warm-up in which the last kind of step is recorded
PENALTY_WARM_UP = 0.2  # its share of the steps


class StepTimer(SilentObserver):
    """An observer that keeps the time between two reported steps of each unit, the first that counts and the last."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._name, self._least = "", 0
        self._first: dict[str, tuple[int, Any]] = {}
        self._last: dict[str, tuple[int, Any]] = {}

    @property
    def milliseconds(self) -> dict[str, float]:
        """Per step, by unit."""
        return {
            name: self._clock.milliseconds(mark, self._last[name][1]) / (self._last[name][0] - step)
            for name, (step, mark) in self._first.items()
        }

    def unit_started(self, index: int, count: int, name: str, kind: str, steps: int) -> None:
        self._name = name
        if self._clock.is_cuda:  # what is timed there are steps that are played back
            self._least = round(PENALTY_WARM_UP * steps) + DEVICE_WARM_UP

    def step(self, step: int, losses: Mapping[str, float]) -> None:
        self.unit_step(self._name, step)

    def unit_step(self, name: str, step: int) -> None:
        """As ``step``, for a run that names the unit itself."""
        if step >= self._least:
            (self._last if name in self._first else self._first)[name] = (step, self._clock.mark())
