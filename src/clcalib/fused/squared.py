"""The mean of squared differences, and its gradient, in one pass."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from clcalib.fused import calls


def mean_squared_error(output: Tensor, target: Tensor, factor: float = 1.0) -> Tensor:
    """factor * mean((output - target)^2); in float32 where the compiled kernels can be had.

    Args:
        output: gets a gradient  # shape: (*)
        target: gets none  # shape: (*)
        factor: a constant.

    Returns:
        the mean  # shape: ()
    """
    target = target.detach()
    is_alike = output.shape == target.shape and output.stride() == target.stride()
    if is_alike and calls.can_take(output, target):
        result: Tensor = _MeanSquaredError.apply(output, target, factor)
        return result
    return (output - target).square().mean() * factor


class _MeanSquaredError(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, output: Tensor, target: Tensor, factor: float) -> Tensor:
        weight = factor / output.numel()
        total, gradient = calls.squared_error(output, target, 2.0 * weight)
        ctx.save_for_backward(gradient)
        return torch.tensor(total * weight)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Any) -> Any:
        (gradient,) = ctx.saved_tensors
        upstream = gradients[0]
        return gradient if float(upstream) == 1.0 else gradient * upstream.to(gradient.dtype), None, None
