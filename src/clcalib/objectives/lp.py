"""Reconstruction error of a unit: the p-th power of the difference, summed over channels, averaged over the rest."""

from __future__ import annotations

import dataclasses

from torch import Tensor

from clcalib.errors import ArgumentError
from clcalib.fused.squared import mean_squared_error
from clcalib.objectives.batch import Need, UnitBatch


def lp_error(output: Tensor, target: Tensor, exponent: float = 2.0, channel_axis: int = 1) -> Tensor:
    """mean over batch and space of sum over channels |output - target|^exponent.

    Args:
        output: (B, C, *spatial), or with the channels on another axis.
        target: same shape; a constant.
        exponent: 2 for every host's rounding phase; 2.4 for BRECQ's activation steps.
        channel_axis: which axis holds the channels.

    Returns:
        A scalar.

    Example:
        >>> import torch
        >>> lp_error(torch.tensor([[1.0, 2.0]]), torch.zeros(1, 2)).item()
        5.0

    Source: BRECQ (Li et al., 2021), eq. 10 without the Fisher weights; docs/method.md, section 3.
    """
    channels = output.shape[channel_axis]
    if exponent == 2.0:
        return mean_squared_error(output, target, float(channels))
    return (output - target).abs().pow(exponent).mean() * channels


def fisher_error(output: Tensor, target: Tensor, squared_gradient: Tensor, channel_axis: int = 1) -> Tensor:
    """mean over batch and space of sum over channels squared_gradient (output - target)^2.

    Source: BRECQ (Li et al., 2021), eq. 10, diagonal Fisher information.
    """
    channels = output.shape[channel_axis]
    return ((output - target).square() * squared_gradient).mean() * channels


@dataclasses.dataclass(frozen=True)
class Reconstruction:
    """``lp_error`` between the quantized and the float unit.

    Args:
        exponent: of the difference, above 0.
    """

    exponent: float = 2.0

    def __post_init__(self) -> None:
        if not 0 < self.exponent < float("inf"):
            raise ArgumentError("exponent", "a positive number", self.exponent, "2 or 2.4 in the papers")

    @property
    def needs(self) -> frozenset[Need]:
        return frozenset()

    def __call__(self, batch: UnitBatch) -> Tensor:
        return lp_error(batch.output, batch.target.detach(), self.exponent, batch.channel_axis)
