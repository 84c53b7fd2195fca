"""The only optimisation loop.  It knows no paper: a phase tells it what to train, on what input, and by which terms."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Protocol

import torch
from torch import Tensor, fx

from clcalib.calibrate.adam import Adam
from clcalib.calibrate.device_step import RECORDERS, DeviceSteps
from clcalib.calibrate.latest import LatestLosses, is_read_without_waiting
from clcalib.calibrate.recipe import Phase, Term
from clcalib.calibrate.shared_step import SharedSteps
from clcalib.calibrate.step import Step
from clcalib.calibrate.streams import StepStream
from clcalib.calibrate.unit_data import UnitData
from clcalib.calibrate.watchdog import check_losses, check_trained
from clcalib.objectives.batch import TrainedObjective

REPORT_EVERY = 25


@torch.enable_grad()  # the caller may be under no_grad
def optimise(
    body: fx.GraphModule,
    data: UnitData,
    phase: Phase,
    random: StepStream,
    *,
    scales: Sequence[float],
    report: Callable[[int, Mapping[str, float]], None],
    record: Callable[[int, Mapping[str, float]], None] = lambda step, losses: None,
    is_watched: bool = False,
    saves: Saves | None = None,
) -> None:
    """Run one phase on one unit; the trainable modules inside ``body`` hold the result.

    Args:
        body: the unit with ``TrainableWeight`` and ``TrainableActivation`` modules in it.
        data: its inputs and targets.
        phase: what to do.
        random: shared with the modules of ``body``.
        scales: the factor of each of the phase's terms, its weight included.
        report: told of the losses every now and then: of each term, that of the last step at which it was due.
        record: told of the same at each step whose losses are looked at anyway.
        is_watched: whether losses and trained tensors are looked at after each step, so that the error names the first
            that is not finite; else losses are looked at after each step on a CPU, and elsewhere, where that would make
            the host wait, at the steps that are reported, and the trained tensors at the end.
        saves: brings the parameters to where an earlier process left them, and saves them every now and then.

    Raises:
        NonFiniteLossError: the loss, or what is trained, stopped being finite.
    """
    step = Step.of(body, data, phase, random, scales=scales)
    if not step.trained:
        return
    steps = _steps_of(step)
    is_cheap = not isinstance(steps, DeviceSteps) and is_read_without_waiting(data.target.device)
    optimizers = [group.optimizer for group in step.trained]
    first = 0 if saves is None else saves.restore(optimizers)
    with steps.running():
        for number in range(first, phase.steps):
            if saves is not None:
                saves.tick(number, optimizers)
            steps.run(number)
            is_last, is_shown = number == phase.steps - 1, number % REPORT_EVERY == 0
            if is_cheap or is_watched or is_shown or is_last:
                losses = steps.losses()
                check_losses(losses, phase, number)
                record(number, losses)
                if is_shown or is_last:
                    report(number, losses)
            if is_watched or is_last:
                check_trained(step, number)


class Saves(Protocol):
    """Where the steps of a phase are saved."""

    def restore(self, optimizers: Sequence[Adam]) -> int:
        """Bring the parameters to where they were saved; return the number of the next step."""

    def tick(self, step: int, optimizers: Sequence[Adam]) -> None:
        """Called before each step."""


class Steps(Protocol):
    """Runs the steps of a phase one after the other."""

    def running(self) -> AbstractContextManager[object]:
        """Around all steps."""

    def run(self, number: int) -> None:
        """Do a step, or queue it."""

    def losses(self) -> dict[str, float]:
        """Of each term, the loss of the last step at which it was due; not finite if it ever was not."""


def _steps_of(step: Step) -> Steps:
    if step.data.layout.team.shards > 1:
        return SharedSteps(step)
    return DeviceSteps(step) if step.data.target.device.type in RECORDERS else HostSteps(step)


class HostSteps:
    """Steps whose numbers are Python's."""

    def __init__(self, step: Step) -> None:
        self._step = step
        self._seen = LatestLosses(step.phase)

    def running(self) -> AbstractContextManager[object]:
        """Around all steps."""
        return contextlib.nullcontext()

    def run(self, number: int) -> None:
        """Do one step."""
        step, due = self._step, self._step.due(number)
        step.random.advance(number)
        index = step.random.batch(len(step.data.target), step.phase.batch_size).to(step.data.target.device)
        losses = step.losses(due, index, number / step.phase.steps)
        for group, rate in zip(step.trained, step.rates(number), strict=True):
            group.optimizer.step(rate)
        self._seen.add(due, losses)

    def losses(self) -> dict[str, float]:
        """Of each term, the loss of the last step at which it was due, or what is not finite of all since the first."""
        return self._seen.losses()


def with_own_parameters(phase: Phase, target: Tensor, channel_axis: int, generator: torch.Generator) -> Phase:
    """The phase with fresh parameters in those of its objectives that train some; ``target`` is a row of the unit's."""

    def fresh(term: Term) -> Term:
        if not isinstance(term.objective, TrainedObjective):
            return term
        return dataclasses.replace(term, objective=term.objective.for_unit(target, channel_axis, generator))

    return dataclasses.replace(phase, terms=tuple(fresh(term) for term in phase.terms))
