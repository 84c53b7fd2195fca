"""The elementwise work of a calibration step, each function in one pass over memory where that can be had.

On the CPU the passes are compiled from ``fused/kernels.cpp`` when first needed, on a GPU from
``fused/triton_kernels.py`` where there is Triton; they take dense float32 and bfloat16 tensors and compute in float32.
Everywhere else, and for every other tensor, the same functions run as the few PyTorch passes of ``passes.py``.  All
give the same values to 1e-6, the same gradients to 1e-5 and the same masks, by test.  Why C++
and not a compiler of loops: docs/decisions/0007.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from clcalib.errors import ArgumentError
from clcalib.fused import calls, device
from clcalib.fused.draws import ALL, NONE, Draw, keep_mask
from clcalib.quant import passes
from clcalib.quant.functional import scale_gradient

NO_LIMITS = (-math.inf, math.inf)
_ONE, _ZERO = torch.ones(()), torch.zeros(())  # where nothing is quantized, nobody reads them


def activation(
    x: Tensor,
    scale: Tensor,
    zero_point: Tensor,
    q_min: int,
    q_max: int,
    *,
    residual: Tensor | None = None,
    limits: tuple[float, float] = NO_LIMITS,
    draw: Draw = ALL,
    gradient_factor: float = 1.0,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """Add, activation function, fake quantization and QDrop's drop in one: y = keep ? x_hat : x'.

    x' = min(max(x + residual, floor), ceiling), and x_hat = s * (clamp(round(x' / s) + z, q_min, q_max) - z).

    Args:
        x: the values; the memory format is kept  # shape: (*)
        scale: s, one for the tensor; its gradient is multiplied by ``gradient_factor``  # shape: () or (1, ...)
        zero_point: z; a constant  # shape: () or (1, ...)
        q_min: the smallest code.
        q_max: the largest code.
        residual: added first  # shape: broadcastable to (*)
        limits: floor and ceiling of the activation function: (0, inf) is ReLU, (0, 6) is ReLU6.
        draw: which elements keep the quantized value; by default all.
        gradient_factor: LSQ's factor on the gradient of the scale.
        dtype: of the result; by default that of x.

    Returns:
        the values on the grid, but for the dropped ones  # shape: (*)

    Raises:
        ArgumentError: there is more than one scale.

    Source: LSQ (Esser et al. 2020), eq. 3; QDrop (Wei et al. 2022), eq. 9.
    """
    dtype = dtype or (x.dtype if residual is None else torch.result_type(x, residual))
    if residual is not None and (residual.shape != x.shape or residual.stride() != x.stride()):
        x, residual = x + residual, None
    for name, value in (("scale", scale), ("zero_point", zero_point)):
        if value.numel() != 1:
            raise ArgumentError(name, "one value for the whole tensor", tuple(value.shape), "use functional.py")
    inputs = (x,) if residual is None else (x, residual)
    if calls.can_take(*inputs) and dtype in calls.FLOATS:
        settings = (limits, q_min, q_max, draw, gradient_factor, dtype)
        result: Tensor = _Activation.apply(x, residual, scale, zero_point, settings)
        return result
    if device.can_take(*inputs) and dtype in calls.FLOATS:
        return device.activation(x, residual, (scale, zero_point, q_min, q_max), limits, draw, gradient_factor, dtype)
    return _plain_activation(x, residual, scale, zero_point, (q_min, q_max), limits, draw, gradient_factor).to(dtype)


def add_and_clamp(x: Tensor, residual: Tensor | None, limits: tuple[float, float]) -> Tensor:
    """min(max(x + residual, floor), ceiling): the end of a residual block in one pass.

    Args:
        x: the values; the memory format is kept  # shape: (*)
        residual: added first, or None  # shape: broadcastable to (*)
        limits: floor and ceiling; (0, inf) is ReLU.

    Returns:
        the clamped sum  # shape: (*)
    """
    return activation(x, _ONE, _ZERO, 0, 1, residual=residual, limits=limits, draw=NONE)


def soft_round(
    floor_codes: Tensor,
    v: Tensor,
    scale: Tensor,
    zero_point: Tensor,
    q_min: int,
    q_max: int,
    *,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """``rounding.soft_quantize`` on floors that are computed once: s * (clamp(floor + h(v) + z, q_min, q_max) - z).

    Args:
        floor_codes: floor(w / s)  # shape: (*)
        v: the trained rounding variable  # shape: (*)
        scale: s; gets its gradient, the sum of g * (code - z), if it asks for one  # shape: broadcastable to (*)
        zero_point: z  # shape: broadcastable to (*)
        q_min: the smallest code.
        q_max: the largest code.
        dtype: of the result.

    Returns:
        the softly rounded weight, in the memory format of v  # shape: (*)
    """
    if _is_by_rows(floor_codes, v, scale, zero_point) and dtype in calls.FLOATS:
        arguments = floor_codes, v, scale, zero_point, (float(q_min), float(q_max)), dtype
        if calls.can_take(v):
            result: Tensor = _SoftRound.apply(*arguments)
            return result
        if device.can_take(v) and not scale.requires_grad:  # those kernels have no gradient for it
            return device.soft_round(*arguments)
    return passes.soft_round_fused(floor_codes, v, scale, zero_point, q_min, q_max).to(dtype)


def kernels_on(place: torch.device) -> str:
    """What runs these functions there: "compiled", "triton" or "plain"."""
    if place.type == "cpu":
        return "compiled" if calls.is_available() else "plain"
    return "triton" if place.type == "cuda" and device.is_available(place) else "plain"


def _is_by_rows(floor_codes: Tensor, v: Tensor, scale: Tensor, zero_point: Tensor) -> bool:
    """Whether the compiled kernel can read this weight: float32, and one scale in all or one for each v[i]."""
    if scale.numel() != 1 and (v.ndim == 0 or scale.shape != (len(v), *(1,) * (v.ndim - 1))):
        return False
    same = floor_codes.shape == v.shape and floor_codes.stride() == v.stride() and zero_point.shape == scale.shape
    tensors = floor_codes, v, scale, zero_point
    is_plain = all(t.dtype == torch.float32 and t.device == v.device for t in tensors)
    return same and is_plain and scale.is_contiguous() and zero_point.is_contiguous()


class _Activation(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, residual: Tensor | None, scale: Tensor, zero_point: Tensor, settings: tuple[Any, ...]
    ) -> Tensor:
        limits, q_min, q_max, draw, ctx.factor, dtype = settings
        zero = float(zero_point)
        ctx.settings = limits, (float(scale), q_min - zero, q_max - zero), draw
        ctx.save_for_backward(x, residual)
        ctx.scale_shape = scale.shape
        limits, grid, draw = ctx.settings
        return calls.activation_forward(x, residual, limits, grid, draw, dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Any) -> Any:
        x, residual = ctx.saved_tensors
        gradient, total = calls.activation_backward(device.in_order_of(x, gradients[0]), x, residual, *ctx.settings)
        of_residual = gradient.to(residual.dtype) if ctx.needs_input_grad[1] else None
        of_scale = torch.full(ctx.scale_shape, total * ctx.factor) if ctx.needs_input_grad[2] else None
        return gradient, of_residual, of_scale, None, None


class _SoftRound(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, floor_codes: Tensor, v: Tensor, scale: Tensor, zero_point: Tensor, *rest: Any) -> Tensor:
        ctx.bounds, dtype = rest
        ctx.save_for_backward(floor_codes, v, scale, zero_point)
        return calls.soft_round_forward(floor_codes, v, scale, zero_point, ctx.bounds, dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Any) -> Any:
        floor_codes, v, scale, zero_point = ctx.saved_tensors
        gradient, of_scale = device.in_order_of(v, gradients[0]), None
        of_v = calls.soft_round_backward(gradient, floor_codes, v, scale, zero_point, ctx.bounds)
        if ctx.needs_input_grad[2]:
            of_scale = calls.soft_round_scale_gradient(gradient, floor_codes, v, zero_point, ctx.bounds)
        return None, of_v, of_scale, None, None, None


def _plain_activation(
    x: Tensor,
    residual: Tensor | None,
    scale: Tensor,
    zero_point: Tensor,
    bounds: tuple[int, int],
    limits: tuple[float, float],
    draw: Draw,
    gradient_factor: float,
) -> Tensor:
    x = x if residual is None else x + residual
    if x.dtype in (torch.bfloat16, torch.float16):
        x = x.float()
    floor, ceiling = limits
    if limits == (0.0, math.inf):
        x = torch.relu(x)
    elif limits != NO_LIMITS:
        x = torch.nn.functional.hardtanh(x, floor, ceiling)
    if draw.threshold <= 0:
        return x + 0 * scale.sum() if scale.requires_grad else x
    scale = scale if gradient_factor == 1.0 else scale_gradient(scale, gradient_factor)
    if draw.threshold >= 256:
        return passes.fake_quantize_fused(x, scale, zero_point, *bounds)
    keep = keep_mask(x.shape, draw, x.device, memory_format=memory_format_of(x))
    return passes.fake_quantize_blend_fused(x, scale, zero_point, *bounds, keep.to(x.dtype))


def memory_format_of(tensor: Tensor) -> torch.memory_format:
    """channels_last where the tensor lies in memory that way and no other, else contiguous."""
    is_last = tensor.ndim == 4 and tensor.is_contiguous(memory_format=torch.channels_last)
    return torch.channels_last if is_last and not tensor.is_contiguous() else torch.contiguous_format
