"""Who watches a run: progress displays and logs implement ``Observer``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from clcalib.quant.policy import LayerPolicy
from clcalib.team.memory import MemoryPlan


class Observer(Protocol):
    """Told of each stage, unit and, now and then, step.  It must not change anything."""

    def stage(self, name: str) -> None: ...

    def policy(self, rows: Sequence[LayerPolicy]) -> None: ...

    def placed(self, plan: MemoryPlan) -> None:
        """Of a run whose units are with several workers: what each of them has; told before anything is computed."""

    def unit_started(self, index: int, count: int, name: str, kind: str, steps: int) -> None: ...

    def correcting(self, done: int, count: int) -> None:
        """Of the unit's ``count`` images, the inputs of ``done`` are corrected, before the unit's first step."""

    def step(self, step: int, losses: Mapping[str, float]) -> None: ...

    def unit_finished(self, index: int, name: str, error_before: float, error_after: float) -> None: ...

    def unit_recalled(self, index: int, count: int, name: str, error_before: float, error_after: float) -> None:
        """A unit that an earlier process finished; nothing is done for it."""

    def quality_so_far(
        self, agreement: float, accuracy: float | None = None, float_accuracy: float | None = None
    ) -> None:
        """How good the network is, with the units so far quantized: shares of a few images, from 0 to 1.

        Told now and then, when a unit is finished (``so_far.py``).

        Args:
            agreement: it gives the float network's class.
            accuracy: it gives the right one; None where the held-out images have no classes.
            float_accuracy: the float network gives the right one.
        """


class Observers:
    """Several observers as one: each is told of everything, in their order."""

    def __init__(self, *observers: Observer) -> None:
        self.observers = observers

    def stage(self, name: str) -> None:
        """Tell of a stage."""
        for observer in self.observers:
            observer.stage(name)

    def policy(self, rows: Sequence[LayerPolicy]) -> None:
        """Tell of the policy table."""
        for observer in self.observers:
            observer.policy(rows)

    def placed(self, plan: MemoryPlan) -> None:
        """Tell of the memory plan."""
        for observer in self.observers:
            observer.placed(plan)

    def unit_started(self, index: int, count: int, name: str, kind: str, steps: int) -> None:
        """Tell of the start of a unit."""
        for observer in self.observers:
            observer.unit_started(index, count, name, kind, steps)

    def correcting(self, done: int, count: int) -> None:
        """Tell of corrected inputs."""
        for observer in self.observers:
            observer.correcting(done, count)

    def step(self, step: int, losses: Mapping[str, float]) -> None:
        """Tell of a step."""
        for observer in self.observers:
            observer.step(step, losses)

    def unit_finished(self, index: int, name: str, error_before: float, error_after: float) -> None:
        """Tell of the end of a unit."""
        for observer in self.observers:
            observer.unit_finished(index, name, error_before, error_after)

    def unit_recalled(self, index: int, count: int, name: str, error_before: float, error_after: float) -> None:
        """Tell of a unit that was finished earlier."""
        for observer in self.observers:
            observer.unit_recalled(index, count, name, error_before, error_after)

    def quality_so_far(
        self, agreement: float, accuracy: float | None = None, float_accuracy: float | None = None
    ) -> None:
        """Tell how good the network is."""
        for observer in self.observers:
            observer.quality_so_far(agreement, accuracy, float_accuracy)


class SilentObserver:
    """Shows nothing."""

    def stage(self, name: str) -> None:
        """Ignore a stage."""

    def policy(self, rows: Sequence[LayerPolicy]) -> None:
        """Ignore the policy table."""

    def placed(self, plan: MemoryPlan) -> None:
        """Ignore the memory plan."""

    def unit_started(self, index: int, count: int, name: str, kind: str, steps: int) -> None:
        """Ignore the start of a unit."""

    def correcting(self, done: int, count: int) -> None:
        """Ignore corrected inputs."""

    def step(self, step: int, losses: Mapping[str, float]) -> None:
        """Ignore a step."""

    def unit_finished(self, index: int, name: str, error_before: float, error_after: float) -> None:
        """Ignore the end of a unit."""

    def unit_recalled(self, index: int, count: int, name: str, error_before: float, error_after: float) -> None:
        """Ignore a unit that was finished earlier."""

    def quality_so_far(
        self, agreement: float, accuracy: float | None = None, float_accuracy: float | None = None
    ) -> None:
        """Ignore how good the network is."""
