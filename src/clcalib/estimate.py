"""What a run would take, from a run of a few steps on a few images; its result is thrown away.

The short run is the real one but for three numbers: its first ``TIMED_IMAGES`` images, which are as many as ranges and
errors are found from in any run; about ``TIMED_STEPS`` steps of each phase; and a memory budget in proportion to the
images.  So everything that does not grow with images or steps is measured as it is, and what does is extrapolated:

    seconds of a unit = measured + (steps left out) * (seconds a step) + (images left out) * (seconds an image),
    peak of memory    = measured + (most bytes stored) * (all images / timed images - 1).
"""

from __future__ import annotations

import dataclasses
import inspect
import math
import time
from collections.abc import Mapping
from typing import Any

from torch import nn

from clcalib.calibrate.observer import SilentObserver
from clcalib.calibrate.recipe import Phase, Recipe
from clcalib.calibrate.space import StoreSpace
from clcalib.capture.describe import float_operators
from clcalib.data.calibration import CalibrationSet, EvaluationSet
from clcalib.evaluate.accuracy import logits
from clcalib.evaluate.detection import detections
from clcalib.job import Job, Outcome, prepare
from clcalib.keeping import needed_bytes
from clcalib.modes import usual_modes
from clcalib.pipeline import quantize
from clcalib.quant.policy import TENSOR, LayerPolicy
from clcalib.report.environment import StageClock, collected_warnings, peak_memory
from clcalib.report.record import BudgetRecord
from clcalib.team.memory import MemoryPlan
from clcalib.timing import Clock, TimedUnit, TimingObserver, image_seconds

TIMED_IMAGES = 256
TIMED_STEPS = 16


@dataclasses.dataclass(frozen=True)
class UnitEstimate:
    """Of one unit: its steps, and the seconds for all of it."""

    name: str
    kind: str
    steps: int
    seconds: float


@dataclasses.dataclass(frozen=True)
class Estimate:
    """What a run would take.

    Attributes:
        seconds_per_stage: by stage, in the order of a run; loading and saving are not in it.
        units: the parts of the stage "reconstruction", and of "last phase" where there is one.
        peak_memory_bytes: the highest memory of the process (of the device, where it has its own).
        stored_bytes: the most that the units' stored inputs and targets have in memory; a part of the former.
        spilled_bytes: the most that they have in temporary files, as the memory budget is too small for them.
        policy: the widths of every layer.
        disk_bytes: the most that the output folder holds at a time, saved units and the steps of one included.
        float_operators: operator -> how often it occurs, of those that are no layers and compute in float.
        warnings: of the short run.
        budget: how the widths were chosen, where they were chosen within a budget.
        plan: what each worker would have in memory, where units are with several workers; all else is as of one.
    """

    seconds_per_stage: Mapping[str, float]
    units: tuple[UnitEstimate, ...]
    peak_memory_bytes: int
    stored_bytes: int
    spilled_bytes: int
    disk_bytes: int
    policy: tuple[LayerPolicy, ...]
    float_operators: Mapping[str, int]
    warnings: tuple[str, ...]
    budget: BudgetRecord | None = None
    plan: MemoryPlan = ()

    @property
    def seconds(self) -> float:
        """Of the whole run."""
        return sum(self.seconds_per_stage.values())

    @property
    def float_layers(self) -> tuple[str, ...]:
        """The layers whose weights are not quantized, and the products that are not."""
        rows = (row for row in self.policy if row.kind != TENSOR and row.right is None)
        return tuple(row.layer for row in rows if row.weight is None)


def estimate(
    model: nn.Module, calibration: CalibrationSet, *, clock: Clock = time.perf_counter, **arguments: Any
) -> Estimate:
    """Say how long ``quantize`` would take with these arguments, how much memory, and what would stay in float.

    On a GPU the few steps that are timed run one by one, where those of a run are recorded and played back; what is
    said of the steps is then the most that they take.

    Args:
        model: as for ``quantize``; nothing is changed and nothing is written.
        calibration: as for ``quantize``.
        clock: what seconds are read off.
        arguments: all others of ``quantize``.

    Raises:
        ClcalibError: as ``quantize`` raises it.
    """
    given = inspect.signature(quantize).bind(model, calibration, **arguments)
    given.apply_defaults()
    settings = dict(given.arguments)
    for name in ("state_folder", "is_resumed"):
        del settings[name]
    listener, evaluation = settings.pop("observer") or SilentObserver(), settings["evaluation"]
    timer = TimingObserver(clock, listener)
    with usual_modes(), collected_warnings() as messages:
        with StageClock(listener.stage, clock) as stages:
            job = prepare(clock=stages, observer=timer, **settings)
            short = _shortened(job)
            with StoreSpace(short.memory_budget, short.spill_folder) as space:
                outcome = short.calibrate(space)
            dataclasses.replace(short, held_out=None).measure(outcome)  # its few held-out images tell no time
            stages.stage("evaluation")
            if evaluation is not None:
                _evaluate(job, outcome, evaluation)
        peak = peak_memory(job.device)
        units = _units(job, short, outcome, timer.units, clock)
    scale = _all_images(job) / _all_images(short)
    stored = round(space.most_used * scale)
    return Estimate(
        seconds_per_stage=_stages(job, short, stages.seconds, timer.units, units, evaluation),
        units=units,
        peak_memory_bytes=peak + stored - space.most_used,
        stored_bytes=stored,
        spilled_bytes=round(space.most_in_files * scale),
        disk_bytes=needed_bytes(job, has_page=True),
        policy=job.policy,
        float_operators=float_operators(job.chain, {row.layer for row in job.policy if row.input is not None}),
        warnings=tuple(messages),
        plan=job.plan,
    )


def _all_images(job: Job) -> int:
    """Everything that has stores: calibration and held-out images."""
    return len(job.images) + (0 if job.held_out is None else len(job.held_out))


def _shortened(job: Job) -> Job:
    """The same on a few images with a few steps; the guard would judge the few steps.

    Held-out images are as many as in proportion: their stores are smaller, and fit where others no longer do.
    """
    images, others = job.images[:TIMED_IMAGES], job.held_out
    if others is not None:
        others = others[: max(job.team.shards, round(len(others) * len(images) / len(job.images)))]
    recipe = job.recipe
    last = None if recipe.last_phase is None else _short_phase(recipe.last_phase)
    correction = None if recipe.correction is None else dataclasses.replace(recipe.correction, steps=1)
    phases = tuple(_short_phase(phase) for phase in recipe.phases)
    short = dataclasses.replace(recipe, phases=phases, last_phase=last, correction=correction)
    few = dataclasses.replace(job, recipe=short, images=images, held_out=others, is_guarded=False)
    if job.memory_budget is None:
        return few
    budget = max(1, job.memory_budget * _all_images(few) // _all_images(job))
    return dataclasses.replace(few, memory_budget=budget)


def _short_phase(phase: Phase) -> Phase:
    """One step, and behind it whole periods of the terms that are not computed at each step."""
    period = math.lcm(*(term.interval for term in phase.terms))
    return dataclasses.replace(phase, steps=min(phase.steps, 1 + period * math.ceil(TIMED_STEPS / period)))


def _units(job: Job, short: Job, outcome: Outcome, timed: list[TimedUnit], clock: Clock) -> tuple[UnitEstimate, ...]:
    """The units of the walk, then the whole network where there is a last phase."""
    left_out = len(job.images) - len(short.images)
    others = _all_images(job) - _all_images(short) - left_out
    images = image_seconds(job, outcome, clock, left_out=left_out, others=others)
    found = []
    for index, unit in enumerate(timed):
        is_network = index == len(images)
        pairs = _phases(short.recipe, job.recipe, index, is_network=is_network)
        seconds = unit.seconds(pairs) + (0.0 if is_network else images[index])
        found.append(UnitEstimate(unit.name, unit.kind, sum(real.steps for _, real in pairs), seconds))
    return tuple(found)


def _phases(short: Recipe, real: Recipe, index: int, *, is_network: bool) -> list[tuple[Phase, Phase]]:
    if is_network:
        return [] if short.last_phase is None or real.last_phase is None else [(short.last_phase, real.last_phase)]
    is_skipped = real.skips_first_unit and index == 0
    return [] if is_skipped else list(zip(short.phases, real.phases, strict=True))


def _stages(
    job: Job,
    short: Job,
    measured: Mapping[str, float],
    timed: list[TimedUnit],
    units: tuple[UnitEstimate, ...],
    evaluation: EvaluationSet | None,
) -> dict[str, float]:
    """The stages of the short run, each with what it left out."""
    count, others = len(job.chain.units), _all_images(job) - len(job.images)
    more = [unit.seconds - (watch.end - watch.start) for unit, watch in zip(units, timed, strict=True)]
    found = dict(measured)
    found["reconstruction"] += sum(more[:count])
    if "last phase" in found:
        found["last phase"] += sum(more[count:])
    found["keys"] *= _all_images(job) / _all_images(short)  # with it, all images go through the float network
    # The same number of images of both sets is measured.
    sizes = [size for size in (job.measured_images, len(job.images), others) if size]
    found["measures"] *= (2 if others else 1) * min(sizes) / max(1, min(short.measured_images, len(short.images)))
    if evaluation is not None:
        found["evaluation"] *= len(evaluation) / min(TIMED_IMAGES, len(evaluation))
    return found


def _evaluate(job: Job, outcome: Outcome, evaluation: EvaluationSet) -> None:
    for chain in (job.chain, outcome.before.chain, outcome.after.chain):
        answer = detections if job.is_detector else logits
        answer(job.network(chain), evaluation.images[:TIMED_IMAGES], device=job.device)
