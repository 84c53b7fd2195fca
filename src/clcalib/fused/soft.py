"""The rectified sigmoid of soft rounding (AdaRound), and the penalty on it."""

from __future__ import annotations

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
    """sum(1 - |2 h(v) - 1|^beta) for one layer; in one pass where the compiled kernels can be had.

    Args:
        v: the rounding variable  # shape: (*)
        beta: at least 1; on a GPU also a tensor (), float64, on the device of v.

    Returns:
        the sum  # shape: ()

    Source: AdaRound (Nagel et al. 2020), eq. 24.
    """
    if v.dtype == torch.float32 and calls.can_take(v):
        result: Tensor = _RoundingPenalty.apply(v, float(beta))
        return result
    if v.dtype == torch.float32 and device.can_take(v):
        return device.rounding_penalty(v, beta)
    return (1 - (2 * rectified_sigmoid(v) - 1).abs().pow(beta)).sum()


class _RoundingPenalty(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, v: Tensor, beta: float) -> Tensor:
        total, gradient = calls.rounding_penalty(v, beta)
        ctx.save_for_backward(gradient)
        return torch.tensor(total)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Any) -> Any:
        (gradient,) = ctx.saved_tensors
        return gradient * gradients[0], None
