"""Stopwatches of a short run: what each unit, each step and each image took."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence

import torch

from clcalib.calibrate.correction import corrected
from clcalib.calibrate.moving import advance_rows, squared_gradient
from clcalib.calibrate.observer import Observer
from clcalib.calibrate.recipe import Phase
from clcalib.calibrate.space import StoreSpace
from clcalib.calibrate.store import RowState, as_rows
from clcalib.job import Job, Outcome
from clcalib.objectives.batch import Need
from clcalib.quant.policy import LayerPolicy
from clcalib.team.memory import MemoryPlan

MOVED_IMAGES = 64  # that the time an image takes through a unit is found from
CORRECTION_STEPS = 20  # of one batch, that the time of a step is found from

Clock = Callable[[], float]


@dataclasses.dataclass
class TimedUnit:
    """When a unit began, was at which step, and ended."""

    name: str
    kind: str
    start: float
    end: float = 0.0
    reports: dict[int, float] = dataclasses.field(default_factory=dict)

    def seconds(self, phases: Sequence[tuple[Phase, Phase]]) -> float:
        """Its time with all steps.

        Args:
            phases: each as it was timed and as it will be.
        """
        total, first = self.end - self.start, 0
        for timed, real in phases:
            last = first + timed.steps - 1
            if first in self.reports and last > first:  # no report where nothing in the unit is trained
                per_step = (self.reports[last] - self.reports[first]) / (last - first)
                total += per_step * (real.steps - timed.steps)
            first = last + 1
        return total


class TimingObserver:
    """Notes times and passes everything on."""

    def __init__(self, clock: Clock, listener: Observer) -> None:
        self.units: list[TimedUnit] = []
        self._clock, self._listener = clock, listener

    def stage(self, name: str) -> None:
        """Pass it on."""
        self._listener.stage(name)

    def policy(self, rows: Sequence[LayerPolicy]) -> None:
        """Pass it on."""
        self._listener.policy(rows)

    def placed(self, plan: MemoryPlan) -> None:
        """Pass it on."""
        self._listener.placed(plan)

    def unit_started(self, index: int, count: int, name: str, kind: str, steps: int) -> None:
        """Note the time."""
        self._listener.unit_started(index, count, name, kind, steps)
        self.units.append(TimedUnit(name, kind, self._clock()))

    def step(self, step: int, losses: Mapping[str, float]) -> None:
        """Note the time."""
        self.units[-1].reports[step] = self._clock()
        self._listener.step(step, losses)

    def correcting(self, done: int, count: int) -> None:
        """Pass it on."""
        self._listener.correcting(done, count)

    def unit_recalled(self, index: int, count: int, name: str, error_before: float, error_after: float) -> None:
        """Pass it on."""
        self._listener.unit_recalled(index, count, name, error_before, error_after)

    def quality_so_far(
        self, agreement: float, accuracy: float | None = None, float_accuracy: float | None = None
    ) -> None:
        """Pass it on."""
        self._listener.quality_so_far(agreement, accuracy, float_accuracy)

    def unit_finished(self, index: int, name: str, error_before: float, error_after: float) -> None:
        """Note the time."""
        self.units[-1].end = self._clock()
        self._listener.unit_finished(index, name, error_before, error_after)


@torch.no_grad()
def image_seconds(job: Job, outcome: Outcome, clock: Clock, *, left_out: int, others: int) -> list[float]:
    """By unit, the seconds of everything that the images which a short run left out go through one by one.

    Args:
        job: with the whole recipe.
        outcome: of the short run.
        clock: what seconds are read off.
        left_out: how many calibration images the short run left out.
        others: how many held-out images there are, all of which it left out.
    """
    chain, quantized, space = job.chain, outcome.after.chain, StoreSpace()
    images = job.images[:MOVED_IMAGES].to(job.device)
    floats: RowState = (as_rows(images),)
    codes = floats
    found = []
    for index, unit in enumerate(chain.units):
        float_body, body = chain.body(index), quantized.body(index)
        move_float = functools.partial(advance_rows, float_body, floats, space)
        move = functools.partial(advance_rows, body, codes, space)
        total = _seconds(clock, job.device, move_float) * (left_out + others) / len(images)
        total += _seconds(clock, job.device, move) * (left_out + 2 * others) / len(images)
        targets = move_float()
        if Need.FLOAT_GRADIENT in job.recipe.needs:
            rest, position = chain.suffix(index), unit.outputs.index(unit.target)
            find = functools.partial(squared_gradient, body, rest, codes, targets, position, space)
            total += _seconds(clock, job.device, find) * left_out / len(images)
        is_skipped = job.recipe.skips_first_unit and index == 0
        found.append(total if is_skipped else total + _correction_seconds(job, index, clock))
        floats, codes = targets, move()
    return found


def _correction_seconds(job: Job, index: int, clock: Clock) -> float:
    settings = job.recipe.correction
    if settings is None:
        return 0.0
    images = job.images[: settings.batch_size].to(job.device)
    rows = tuple(as_rows(tensor) for tensor in job.chain.prefix(index)(images))
    few = dataclasses.replace(settings, steps=min(settings.steps, CORRECTION_STEPS))
    seconds = _seconds(clock, job.device, functools.partial(corrected, job.chain, index, rows, few, StoreSpace()))
    return seconds / few.steps * settings.steps * len(job.images) / len(images)


def _seconds(clock: Clock, device: torch.device, work: Callable[[], object]) -> float:
    """The time of work that was done once before, as the first time takes longer."""
    work()
    start = _now(clock, device)
    work()
    return _now(clock, device) - start


def _now(clock: Clock, device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return clock()
