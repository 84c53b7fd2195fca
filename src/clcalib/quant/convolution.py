"""A bfloat16 convolution with a softly rounded weight, whose gradient in the weight has a kernel of our own.

The weight's gradient of a 3 x 3 convolution takes PyTorch longer than the other two products of the same size, since
its sums run over pixels, of which the processor's bfloat16 instruction wants two side by side.  The kernel in
``fused/weight_gradient.hpp`` lays them out so; the gradient stays float32 on its way to the rounding variable.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from clcalib.fused import calls, device

_backward = torch.ops.aten.convolution_backward
_ONES, _ZEROS = [1, 1], [0, 0]
MOST_ELEMENTS = 9 * 128 * 128  # of a weight; the sums of larger ones leave the cache, and PyTorch is as fast


class Rounding(NamedTuple):
    """What a softly rounded weight is made of; ``kernels.soft_round`` says how.

    Attributes:
        floor_codes: floor(w / s)  # shape: (K, C, 3, 3)
        v: the trained rounding variable  # shape: (K, C, 3, 3)
        scale: s; a constant  # shape: (K, 1, 1, 1) or ()
        zero_point: z; a constant  # shape: as of the scale
        bounds: q_min and q_max.
    """

    floor_codes: Tensor
    v: Tensor
    scale: Tensor
    zero_point: Tensor
    bounds: tuple[float, float]


def has_kernel(weight: Tensor) -> bool:
    """Whether the weight's gradient is had from the kernel: 3 x 3 on the CPU, with channels as it takes them.

    Not where the processor multiplies tiles of bfloat16 (AMX): there PyTorch's kernel is several times as fast.
    """
    if weight.device.type != "cpu" or weight.dtype != torch.float32 or weight.shape[2:] != (3, 3):
        return False
    outputs, inputs = weight.shape[:2]
    is_fitting = outputs % 8 == 0 and inputs % 16 == 0 and weight.numel() <= MOST_ELEMENTS
    return is_fitting and calls.has_weight_gradient() and not calls.has_tiles()


def soft_convolution(x: Tensor, rounding: Rounding, bias: Tensor | None) -> Tensor:
    """conv2d(x, soft_round(...), bias) with stride and padding 1, in bfloat16.

    Args:
        x: bfloat16, channels last  # shape: (N, C, H, W)
        rounding: of the weight, which ``has_kernel``.
        bias: bfloat16  # shape: (K,)

    Returns:
        bfloat16, channels last  # shape: (N, K, H, W)
    """
    result: Tensor = _SoftConvolution.apply(x, bias, *rounding)
    return result


def weight_gradient(x: Tensor, weight: Tensor, gradient: Tensor) -> Tensor:
    """The gradient of the weight (K, C, 3, 3) of a convolution with stride and padding 1, all in bfloat16.

    Args:
        x: the input  # shape: (N, C, H, W)
        weight: of the convolution  # shape: (K, C, 3, 3)
        gradient: of the output  # shape: (N, K, H, W)

    Returns:
        float32 from the kernel, which takes even widths; else bfloat16; channels last  # shape: (K, C, 3, 3)
    """
    if x.shape[3] % 2 == 0 and all(_is_dense_last(tensor) for tensor in (x, gradient)):
        return calls.weight_gradient(x, gradient)
    found: Tensor = _gradients(gradient, x, weight, [False, True, False])[1]
    return found.contiguous(memory_format=torch.channels_last)


class _SoftConvolution(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        bias: Tensor | None,
        floor_codes: Tensor,
        v: Tensor,
        scale: Tensor,
        zero_point: Tensor,
        bounds: tuple[float, float],
    ) -> Tensor:
        weight = calls.soft_round_forward(floor_codes, v, scale, zero_point, bounds, torch.bfloat16)
        ctx.save_for_backward(x, weight, floor_codes, v, scale, zero_point)
        ctx.bounds = bounds
        return torch.conv2d(x, weight, bias, padding=1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Any) -> Any:
        x, weight, floor_codes, v, scale, zero_point = ctx.saved_tensors
        gradient = gradients[0].contiguous(memory_format=torch.channels_last)
        of_x = _gradients(gradient, x, weight, [True, False, False])[0] if ctx.needs_input_grad[0] else None
        of_weight = device.in_order_of(v, weight_gradient(x, weight, gradient))
        of_v = calls.soft_round_backward(of_weight, floor_codes, v, scale, zero_point, ctx.bounds)
        # Summed in float32, then rounded once.
        of_bias = gradient.sum((0, 2, 3), dtype=torch.float32).to(gradient.dtype) if ctx.needs_input_grad[1] else None
        return of_x, of_bias, None, of_v, None, None, None


def _gradients(gradient: Tensor, x: Tensor, weight: Tensor, wanted: list[bool]) -> Any:
    stride = padding = dilation = _ONES
    return _backward(gradient, x, weight, None, stride, padding, dilation, False, _ZEROS, 1, wanted)


def _is_dense_last(tensor: Tensor) -> bool:
    return tensor.dtype == torch.bfloat16 and tensor.is_contiguous(memory_format=torch.channels_last)
