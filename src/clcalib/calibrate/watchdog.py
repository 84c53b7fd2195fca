"""What is done when the loss of a unit stops being finite: it is found out where, done again with care, or given up.

On a CPU the losses are looked at after each step; on a GPU they are added up on the device, where one number that is
not finite stays in the sum, and the sum is looked at when losses are reported.  Either way the phase is then run once
more from its start, and all losses and trained tensors are looked at after each step: steps are repeatable, so the
first one that is not finite is found, whatever it was that came to light.
"""

from __future__ import annotations

import dataclasses
import enum
import math
import warnings
from collections.abc import Callable, Mapping
from typing import Protocol

import torch

from clcalib.calibrate.recipe import Phase
from clcalib.calibrate.step import Step
from clcalib.errors import NonFiniteLossError, NonFiniteLossWarning

SLOWER = 0.1  # the share of its rates that a phase is done again with
Run = Callable[[Phase, torch.dtype, bool], None]  # phase, type of convolutions, whether every step is looked at


class Attempt(enum.IntEnum):
    """What a phase is run for."""

    FIRST = 0
    LOCATING = 1  # the first thing that is not finite
    SLOWER = 2


class Attempts(Protocol):
    """Which attempt at a phase is under way; what an earlier process saved of it is gone on with."""

    @property
    def attempt(self) -> int:
        """An ``Attempt``."""

    @property
    def seen(self) -> str:
        """What was not finite in the attempts before this one."""

    def begin_attempt(self, attempt: int, seen: str) -> None:
        """Steps belong to another attempt from now on."""

    def give_up(self, warning: Warning) -> None:
        """The phase is over, but not by its first attempt."""


def watched(unit: str, run: Run, phase: Phase, dtype: torch.dtype, attempts: Attempts) -> None:
    """Run a phase of a unit; where its loss is not finite, once more in float32 and at a tenth of its rates.

    Args:
        unit: its name, for warnings.
        run: runs the phase, and changes nothing unless it gets to the end; at the first attempt losses alone are
            looked at, later everything at every step.
        phase: what is run.
        dtype: of convolutions at the first attempt.
        attempts: told which one is under way, and where the first did not come to its end: then the unit is the one
            that the slower attempt made, or, where that failed as well, the one that was there before.

    Warns:
        NonFiniteLossWarning: names the first loss or tensor that is not finite, and says what was done.
    """
    if attempts.attempt == Attempt.FIRST:
        try:
            run(phase, dtype, False)
        except NonFiniteLossError as error:
            attempts.begin_attempt(Attempt.LOCATING, str(error))
        else:
            return
    if attempts.attempt == Attempt.LOCATING:
        attempts.begin_attempt(Attempt.SLOWER, _located(run, phase, dtype, attempts.seen))
    try:
        run(slower(phase), torch.float32, True)
        outcome = f"the phase was done again in float32, at {SLOWER:g} of its rates"
    except NonFiniteLossError as error:
        outcome = f"nor did it work in float32, at {SLOWER:g} of its rates ({error}); the unit stays as it was before"
    warning = NonFiniteLossWarning(
        f"unit {unit}: {attempts.seen}; {outcome}; look for extreme values in the unit's weights and inputs, or try "
        "smaller rates"
    )
    warnings.warn(warning, stacklevel=2)
    attempts.give_up(warning)


def slower(phase: Phase) -> Phase:
    """The phase with a tenth of its rates."""
    names = ("rounding_rate", "weight_scale_rate", "activation_rate", "bias_rate")
    rates = {name: getattr(phase, name) for name in names}
    return dataclasses.replace(phase, **{name: SLOWER * rate for name, rate in rates.items() if rate is not None})


def check_losses(losses: Mapping[str, float], phase: Phase, step: int) -> None:
    """Raise for the first loss that is not finite.

    Raises:
        NonFiniteLossError: see above.
    """
    for name, value in losses.items():
        if not math.isfinite(value):
            raise NonFiniteLossError(f"the loss {name} is {value} at step {step} of phase {phase.name!r}")


def check_trained(step: Step, number: int) -> None:
    """Raise for the first trained tensor that is not finite behind a step; waits for the device.

    Raises:
        NonFiniteLossError: see above.
    """
    names = {id(tensor): name for name, tensor in step.body.named_parameters()}
    for group in step.trained:
        for tensor in group.optimizer.parameters:
            if not bool(torch.isfinite(tensor).all()):
                name = names.get(id(tensor), "a parameter of the loss")
                raise NonFiniteLossError(f"{name} is not finite behind step {number} of phase {step.phase.name!r}")


def _located(run: Run, phase: Phase, dtype: torch.dtype, seen: str) -> str:
    """What the first thing is that is not finite; what was seen, if it does not come again."""
    try:
        run(phase, dtype, True)
    except NonFiniteLossError as first:
        return str(first)
    return seen
