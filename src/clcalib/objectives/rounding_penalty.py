"""The penalty that drives soft rounding to zero or one (AdaRound)."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from clcalib.errors import ArgumentError
from clcalib.fused.soft import rounding_penalties
from clcalib.objectives.batch import Need, UnitBatch


def annealed_beta(progress: float, warm_up: float, start: float, end: float) -> float:
    """beta, linear from ``start`` at the end of the warm-up to ``end`` at the end of the phase."""
    share = (progress - warm_up) / (1 - warm_up)
    return end + (start - end) * min(1.0, max(0.0, 1.0 - share))


@dataclasses.dataclass(frozen=True)
class RoundingPenalty:
    """sum over all weights of 1 - |2 h(v) - 1|^beta, with annealed beta; zero while the warm-up lasts.

    Large beta leave the middle flat; small ones push everything to the ends.

    Args:
        warm_up: share of the steps without penalty.
        beta_start: where the linear schedule of beta begins.
        beta_end: where it ends.
        is_mean: divide by the number of weights, so that one weight of the term fits networks of every size.
    """

    warm_up: float = 0.2
    beta_start: float = 20.0
    beta_end: float = 2.0
    is_mean: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.warm_up < 1:
            raise ArgumentError("warm_up", "a share of the steps, at least 0 and below 1", self.warm_up)

    @property
    def needs(self) -> frozenset[Need]:
        return frozenset({Need.ROUNDING})

    def annealed(self, progress: float) -> float | None:
        """beta; None while the warm-up lasts."""
        if progress < self.warm_up:
            return None
        return annealed_beta(progress, self.warm_up, self.beta_start, self.beta_end)

    def __call__(self, batch: UnitBatch) -> Tensor:
        beta = self.annealed(float(batch.progress)) if batch.annealed is None else batch.annealed
        if beta is None or not batch.rounding:
            return torch.zeros((), device=batch.output.device)
        total = rounding_penalties(batch.rounding, beta)
        return total / sum(v.numel() for v in batch.rounding) if self.is_mean else total
