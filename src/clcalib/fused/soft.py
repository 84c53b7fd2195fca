"""The rectified sigmoid of soft rounding (AdaRound), and the penalty on it."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from clcalib.fused import calls, device

ZETA = 1.1
GAMMA = -0.1


def rectified_sigmoid(v: Tensor) -> Tensor:
    """h(v) = clamp(1.2 * sigmoid(v) - 0.1, 0, 1), a sigmoid that reaches 0 and 1 (Louizos et al. 2018).

    Args:
        v: the rounding variable  # shape: (*)

    Returns:
        the share of a step that is added to the floor, 0 to 1  # shape: (*)
    """
    return torch.clamp((ZETA - GAMMA) * torch.sigmoid(v) + GAMMA, 0.0, 1.0)


def rounding_penalty(v: Tensor, beta: float | Tensor) -> Tensor:
    """``rounding_penalties`` of one layer."""
    return rounding_penalties((v,), beta)


def rounding_penalties(rounding: Sequence[Tensor], beta: float | Tensor) -> Tensor:
    """sum(1 - |2 h(v) - 1|^beta) over all layers; in one pass over each where the compiled kernels can be had.

    Args:
        rounding: the rounding variable v of each layer, at least one  # shape: (*)
        beta: at least 1; on a GPU also a tensor (), float64, on the device of v.

    Returns:
        the sum  # shape: ()

    Source: AdaRound (Nagel et al. 2020), eq. 24.
    """
    if calls.can_take(*rounding) and all(v.dtype == torch.float32 for v in rounding):
        result: Tensor = _RoundingPenalty.apply(float(beta), *rounding)
        return result
    return functools.reduce(torch.add, (_of_layer(v, beta) for v in rounding))


def _of_layer(v: Tensor, beta: float | Tensor) -> Tensor:
    if v.dtype == torch.float32 and device.can_take(v):
        return device.rounding_penalty(v, beta)
    return (1 - (2 * rectified_sigmoid(v) - 1).abs().pow(beta)).sum()


class _RoundingPenalty(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, beta: float, *rounding: Tensor) -> Tensor:
        totals, found = zip(*(calls.rounding_penalty(v, beta) for v in rounding), strict=True)
        ctx.save_for_backward(*found)
        return torch.tensor(sum(totals))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Any) -> Any:
        return None, *(gradient * gradients[0] for gradient in ctx.saved_tensors)
