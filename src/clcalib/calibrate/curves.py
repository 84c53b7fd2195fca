"""The losses of a unit, step after step, thinned as they come: a long run takes no more memory than a short one."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

MOST_POINTS = 200
_DIGITS = 6  # significant; a curve is looked at


@dataclasses.dataclass(frozen=True)
class Curves:
    """The losses of each term over the steps of a unit.

    Attributes:
        steps: counted from 0 over all phases, rising.
        losses: of each term at these steps, without its weight; None where it was not due yet, or not finite.
    """

    steps: tuple[int, ...] = ()
    losses: Mapping[str, tuple[float | None, ...]] = dataclasses.field(default_factory=dict)

    @classmethod
    def from_values(cls, values: Mapping[str, Any]) -> Curves:
        """The curves of ``dataclasses.asdict``, also when that was JSON in between."""
        losses = {str(name): tuple(column) for name, column in values["losses"].items()}
        return cls(tuple(int(step) for step in values["steps"]), losses)


class CurveRecorder:
    """Keeps at most ``MOST_POINTS`` of the steps that it is told, evenly spread, and the last one.

    What is kept depends on the steps alone: those that a power of two divides, which doubles when there are too many.

    Example:
        >>> recorder = CurveRecorder()
        >>> for step in range(1000):
        ...     recorder.add(step, {"Reconstruction": 1 / (step + 1)})
        >>> recorder.curves().steps[:3], recorder.curves().steps[-1], len(recorder.curves().steps)
        ((0, 8, 16), 999, 126)
    """

    def __init__(self, most: int = MOST_POINTS) -> None:
        self._most = most
        self._spacing = 1
        self._rows: dict[int, dict[str, float]] = {}
        self._last: tuple[int, dict[str, float]] | None = None

    def add(self, step: int, losses: Mapping[str, float]) -> None:
        """Take note of a step; one that comes again takes the place of what was told of it and of all later ones."""
        if self._last is not None and step <= self._last[0]:
            self._rows = {number: row for number, row in self._rows.items() if number < step}
        self._last = step, dict(losses)
        if step % self._spacing:
            return
        self._rows[step] = self._last[1]
        while len(self._rows) > self._most:
            self._spacing *= 2
            self._rows = {number: row for number, row in self._rows.items() if number % self._spacing == 0}

    def curves(self) -> Curves:
        """What is kept."""
        rows = self._rows if self._last is None else {**self._rows, self._last[0]: self._last[1]}
        names = dict.fromkeys(name for row in rows.values() for name in row)
        return Curves(tuple(rows), {name: tuple(_shown(row.get(name)) for row in rows.values()) for name in names})

    def values(self) -> dict[str, Any]:
        """What ``restore`` takes, as plain values."""
        return {"spacing": self._spacing, **dataclasses.asdict(self.curves())}

    def restore(self, values: Mapping[str, Any]) -> None:
        """Go on from what ``values`` told."""
        curves = Curves.from_values(values)
        self._spacing, self._rows = int(values["spacing"]), {}
        for at, step in enumerate(curves.steps):
            row = {name: value for name, column in curves.losses.items() if (value := column[at]) is not None}
            self._last = step, row
            if step % self._spacing == 0:
                self._rows[step] = row


def _shown(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else float(f"{value:.{_DIGITS}g}")
