"""Reconstruction error of all units at once, for the phase that optimises the network as a whole."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from clcalib.errors import ArgumentError
from clcalib.objectives.batch import Cut, Need, UnitBatch, missing_need
from clcalib.objectives.lp import lp_error


def network_error(cuts: tuple[Cut, ...], end_weight: float = 1.0, unit_weight: float = 1.0) -> Tensor:
    """mean_k w_k e_k / e_k^0, with e_k the unit's ``lp_error``, w_k = unit_weight, and w_k = end_weight at the end.

    Divided by its value at the start, e_k^0, each unit counts the same, whatever its size: the gradient is that of the
    sum of log e_k there.

    Args:
        cuts: the units' outputs, at least one.
        end_weight: of the network's own output, where it is among them.
        unit_weight: of every other one.

    Returns:
        A scalar.

    Source: ours; local errors stay in the loss, since losses on the end alone overfit (docs/method.md, section 2).
    """
    errors = [lp_error(cut.output, cut.target.detach(), channel_axis=cut.channel_axis) / cut.error for cut in cuts]
    weights = (end_weight if cut.is_end else unit_weight for cut in cuts)
    weighted = [error if weight == 1 else error * weight for error, weight in zip(errors, weights, strict=True)]
    return torch.stack(weighted).mean()


@dataclasses.dataclass(frozen=True)
class NetworkReconstruction:
    """``network_error`` of a batch.

    Args:
        end_weight: how much the network's end counts; 1 is as much as each unit.
        unit_weight: how much every other unit does; at 0 they are not looked at.
    """

    end_weight: float = 1.0
    unit_weight: float = 1.0

    def __post_init__(self) -> None:
        for name in ("end_weight", "unit_weight"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise ArgumentError(name, "a number of at least 0", getattr(self, name))
        if self.end_weight == self.unit_weight == 0:
            raise ArgumentError("end_weight", "one of both weights above 0", "0 twice")

    @property
    def needs(self) -> frozenset[Need]:
        return frozenset({Need.CUTS})

    def __call__(self, batch: UnitBatch) -> Tensor:
        if not batch.cuts:
            raise missing_need(self, Need.CUTS)
        return network_error(batch.cuts, self.end_weight, self.unit_weight)
