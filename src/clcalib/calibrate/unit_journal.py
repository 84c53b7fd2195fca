"""What is saved, every minute, of the steps of the unit under way.

A step's random numbers depend on its counters alone, so that what a phase is after some steps is its parameters and
Adam's means.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping, Sequence
from typing import Any

from clcalib.calibrate.adam import Adam
from clcalib.calibrate.curves import CurveRecorder, Curves
from clcalib.calibrate.guard import quantizers_of
from clcalib.calibrate.journal import Journal, raise_if_stopped, tensors_of
from clcalib.durable import stop
from clcalib.durable.payload import Payload
from clcalib.errors import ResumeError
from clcalib.quant.insert import QuantizedChain
from clcalib.team.parts import Parts


@dataclasses.dataclass(frozen=True)
class Place:
    """Where in a unit the steps are that come next, and what has come of the phases before.

    Attributes:
        phase: its number.
        attempt: at this phase (``watchdog.Attempt``).
        seen: what was not finite in the attempts before this one.
        is_sound: whether all losses of the phases before were finite at the first attempt.
        told: name of the category and text of each warning that these phases gave.
    """

    phase: int = 0
    attempt: int = 0
    seen: str = ""
    is_sound: bool = True
    told: list[list[str]] = dataclasses.field(default_factory=list)

    @classmethod
    def from_values(cls, values: Mapping[str, Any]) -> Place:
        """The place that was saved.

        Raises:
            KeyError, TypeError, ValueError: none was.
        """
        saved = values["place"]
        numbers = int(saved["phase"]), int(saved["attempt"])
        return cls(*numbers, str(saved["seen"]), bool(saved["is_sound"]), list(values["warnings"]))

    def values(self) -> dict[str, Any]:
        """What is saved of it beside its warnings, which ``Journal.recall`` tells again."""
        return {name: value for name, value in dataclasses.asdict(self).items() if name != "told"}


def _check(values: Mapping[str, Any]) -> None:
    """Raise KeyError, TypeError or ValueError where steps of a unit cannot be gone on with from these."""
    Place.from_values(values)
    Curves.from_values(values["curves"])
    int(values["curves"]["spacing"])
    int(values["step"])
    list(values["groups"])


class UnitJournal:
    """The steps of one unit, over all attempts at all its phases: ``loop.Saves`` and ``watchdog.Attempts``.

    Args:
        journal: of the run.
        index: of the unit.
        chain: where it is.
        curves: where its losses go.

    Attributes:
        place: where they are; that of a new one, where an earlier process left them.
    """

    def __init__(self, journal: Journal, index: int, chain: QuantizedChain, curves: CurveRecorder) -> None:
        self._journal, self._name, self._index = journal, journal.partial_name(index), index
        self._chain, self._curves = chain, curves
        self._last = time.monotonic()
        self.place, self._saved = Place(), journal.recall(self._name, chain, _check)
        if self._saved is not None:
            self.place = Place.from_values(self._saved.values)
            curves.restore(self._saved.values["curves"])

    @property
    def attempt(self) -> int:
        """Which one at the phase is under way."""
        return self.place.attempt

    @property
    def seen(self) -> str:
        """What was not finite in the attempts before this one."""
        return self.place.seen

    def begin_phase(self, number: int) -> None:
        """Steps belong to this phase from now on, which is the saved one or comes behind it."""
        if number != self.place.phase:
            self.place = dataclasses.replace(self.place, phase=number, attempt=0, seen="")

    def begin_attempt(self, attempt: int, seen: str) -> None:
        """Steps belong to another attempt from now on."""
        self.place = dataclasses.replace(self.place, attempt=attempt, seen=seen)

    def give_up(self, warning: Warning) -> None:
        """The phase is over, but not by its first attempt; who goes on from here tells the warning again."""
        told = [*self.place.told, [type(warning).__name__, str(warning)]]
        self.place = dataclasses.replace(self.place, is_sound=False, told=told)

    def restore(self, optimizers: Sequence[Adam]) -> int:
        """Bring an attempt's parameters to where they were saved; return the number of the step that comes next.

        Raises:
            ResumeError: they are others.
        """
        saved, self._saved = self._saved, None
        if saved is None or self.place.values() != saved.values["place"]:
            return 0
        groups: list[list[int]] = saved.values["groups"]
        try:
            for number, (optimizer, steps) in enumerate(zip(optimizers, groups, strict=True)):
                optimizer.restore([saved.tensors[f"group/{number}/{at}"] for at in range(3 * len(steps))], steps)
        except (ValueError, KeyError) as error:
            raise ResumeError(f"the saved steps of {self._name} do not fit the unit ({error}); begin anew") from None
        return int(saved.values["step"])

    def tick(self, step: int, optimizers: Sequence[Adam]) -> None:
        """Called before each step: every now and then, and where the run was asked to stop, all of it is saved.

        Raises:
            StorageError: it could not be saved.
            Interrupted: the run was asked to stop.
        """
        self._journal.heed()
        is_due = time.monotonic() - self._last >= self._journal.snapshot_seconds
        if not (is_due or stop.is_asked()):
            return
        if self._journal.state is not None and (self.place.phase, self.place.attempt, step) != (0, 0, 0):
            self._save(self._journal.state, step, optimizers)
        self._last = time.monotonic()
        raise_if_stopped()

    def _save(self, state: Parts, step: int, optimizers: Sequence[Adam]) -> None:
        tensors = tensors_of(quantizers_of(self._chain.chain.body(self._index)))
        for number, optimizer in enumerate(optimizers):
            tensors |= {f"group/{number}/{at}": tensor for at, tensor in enumerate(optimizer.state())}
        values = {
            "place": self.place.values(),
            "step": step,
            "groups": [optimizer.steps() for optimizer in optimizers],
            "curves": self._curves.values(),
            "warnings": self.place.told,
        }
        state.put(self._name, Payload(tensors, values))
