"""The penalty that drives soft rounding to zero or one (AdaRound)."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor

from clcalib.errors import ArgumentError
from clcalib.objectives.batch import Need, UnitBatch


def rounding_penalty(rounding: Sequence[Tensor], beta: float) -> Tensor:
    """sum over all weights of 1 - |2 h - 1|^beta.

    Args:
        rounding: h(v) of each layer, in [0, 1], any shapes.
        beta: large values leave the middle flat; small ones push everything to the ends.

    Example:
        >>> rounding_penalty([torch.tensor([0.0, 0.5, 1.0])], beta=2.0).item()
        1.0

    Source: AdaRound (Nagel et al., 2020), eq. 24.
    """
    return torch.stack([(1 - (2 * h - 1).abs().pow(beta)).sum() for h in rounding]).sum()


def annealed_beta(progress: float, warm_up: float, start: float, end: float) -> float:
    """beta, linear from ``start`` at the end of the warm-up to ``end`` at the end of the phase."""
    share = (progress - warm_up) / (1 - warm_up)
    return end + (start - end) * min(1.0, max(0.0, 1.0 - share))


@dataclasses.dataclass(frozen=True)
class RoundingPenalty:
    """``rounding_penalty`` with annealed beta; zero while the warm-up lasts.

    Args:
        warm_up: share of the steps without penalty.
        beta_start, beta_end: ends of the linear schedule of beta.
    """

    warm_up: float = 0.2
    beta_start: float = 20.0
    beta_end: float = 2.0

    def __post_init__(self) -> None:
        if not 0 <= self.warm_up < 1:
            raise ArgumentError("warm_up", "a share of the steps, at least 0 and below 1", self.warm_up)

    @property
    def needs(self) -> frozenset[Need]:
        return frozenset({Need.ROUNDING})

    def __call__(self, batch: UnitBatch) -> Tensor:
        if batch.progress < self.warm_up or not batch.rounding:
            return batch.output.new_zeros(())
        beta = annealed_beta(batch.progress, self.warm_up, self.beta_start, self.beta_end)
        return rounding_penalty(batch.rounding, beta)
