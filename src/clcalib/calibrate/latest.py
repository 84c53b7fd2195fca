"""The losses of the last steps, kept where they are computed until somebody asks for them."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from clcalib.calibrate.recipe import Phase
from clcalib.calibrate.step import names_of


def is_read_without_waiting(device: torch.device) -> bool:
    """Whether a number is read off a tensor there without waiting for steps that are queued."""
    return device.type == "cpu"


class LatestLosses:
    """Of each term of a phase, the loss of the last step at which it was due.

    They are tensors, so that no other step than those that are reported waits for a number.
    """

    def __init__(self, phase: Phase) -> None:
        self._names = names_of(phase)
        self._latest = dict[str, Tensor]()
        self._sums = dict[str, Tensor]()

    def add(self, due: Sequence[int], losses: Sequence[Tensor]) -> None:
        """Take in the losses of a step, of the terms that were due."""
        latest = {self._names[at]: loss for at, loss in zip(due, losses, strict=True)}
        self._latest |= latest
        if not is_read_without_waiting(losses[0].device):
            # Not every step is looked at there; what was not finite once stays in the sum.
            self._sums |= {name: loss + self._sums.get(name, 0.0) for name, loss in latest.items()}

    def losses(self) -> dict[str, float]:
        """Of each term the last loss, or what is not finite of all since the first; waits for the device."""
        latest = {name: float(loss) for name, loss in self._latest.items()}
        return latest | {name: value for name, loss in self._sums.items() if not math.isfinite(value := float(loss))}
