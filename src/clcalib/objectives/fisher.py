"""Reconstruction error weighted by the diagonal Fisher information (BRECQ)."""

from __future__ import annotations

import dataclasses

from torch import Tensor

from clcalib.objectives.batch import Need, UnitBatch, missing_need
from clcalib.objectives.lp import fisher_error


@dataclasses.dataclass(frozen=True)
class FisherReconstruction:
    """``fisher_error`` with the squared gradients that the walk took once, before the first step of the unit."""

    @property
    def needs(self) -> frozenset[Need]:
        return frozenset({Need.FLOAT_GRADIENT})

    def __call__(self, batch: UnitBatch) -> Tensor:
        if batch.float_gradient is None:
            raise missing_need(self, Need.FLOAT_GRADIENT)
        return fisher_error(batch.output, batch.target.detach(), batch.float_gradient, batch.channel_axis)
