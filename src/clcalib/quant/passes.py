"""The functions of ``functional.py`` and ``rounding.py`` that a calibration step spends its time in, in few passes of
PyTorch: the plain path of ``kernels.py``, for every device and every machine.

On the CPU these functions are bound by the number of passes over memory, so each one works in place on one fresh
buffer, divides (as cheap as a multiplication, and bit-equal to the plain functions) and takes only the passes that
PyTorch vectorises: comparisons into bool tensors, ``torch.where`` and ``clamp`` with tensor bounds cost 4 to 30 times
as much as arithmetic.  Masks are therefore arithmetic: float tensors of zeros and ones.  Bounds are numbers there; on
every other device to read a number would make the host wait for all that is queued, so they stay tensors (``Bound``),
with the same result bit for bit.

Clipped elements are told apart by the value: ``x / s`` beyond ``q_min - z - 1/2`` or ``q_max - z + 1/2``.  An element
on that very threshold (a tie of the rounding) counts as clipped here, where the plain function goes by the tie.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from clcalib.errors import ArgumentError
from clcalib.fused.soft import GAMMA, ZETA

Bound = float | Tensor  # a number on the CPU, a tensor () elsewhere

_hardtanh_backward = torch.ops.aten.hardtanh_backward  # gradient where lower < x < upper, else 0: one vectorised pass
_sigmoid_backward = torch.ops.aten.sigmoid_backward  # gradient * sigma * (1 - sigma): one vectorised pass


def fake_quantize_fused(x: Tensor, scale: Tensor, zero_point: Tensor, q_min: int, q_max: int) -> Tensor:
    """``functional.fake_quantize`` for one scale per tensor, bit-equal forward, in 4 passes; 3 passes back.

    Args:
        x: the values; the memory format is kept  # shape: (*)
        scale: s; gets its gradient if it asks for one  # shape: () or (1, ...)
        zero_point: z; a constant  # shape: () or (1, ...)
        q_min: the smallest code.
        q_max: the largest code.

    Returns:
        the values on the grid  # shape: (*)

    Raises:
        ArgumentError: there is more than one scale.
    """
    _require_one(scale, zero_point)
    result: Tensor = _FakeQuantize.apply(x, scale, zero_point, q_min, q_max)
    return result


def fake_quantize_blend_fused(
    x: Tensor, scale: Tensor, zero_point: Tensor, q_min: int, q_max: int, keep: Tensor
) -> Tensor:
    """Quantize some elements and leave the others: ``x + keep * (x_hat - x)``, as QDrop drops quantization.

    The result is exactly ``x_hat`` where ``keep`` is 1 and exactly ``x`` where it is 0.

    Args:
        x: the values; the memory format is kept  # shape: (*)
        scale: s; gets its gradient if it asks for one  # shape: () or (1, ...)
        zero_point: z; a constant  # shape: () or (1, ...)
        q_min: the smallest code.
        q_max: the largest code.
        keep: 1 = keep the quantized value, 0 = the float one, nothing between; bool, uint8 or, fastest, the float type
            of x  # shape: (*)

    Returns:
        the mixed values  # shape: (*)

    Raises:
        ArgumentError: there is more than one scale, or ``keep`` has another shape than x.
    """
    _require_one(scale, zero_point)
    if keep.shape != x.shape:
        raise ArgumentError("keep", f"the shape of x, {tuple(x.shape)}", tuple(keep.shape))
    if keep.dtype == torch.bool:
        keep = keep.view(torch.uint8)  # the cast from uint8 is vectorised, the one from bool is not
    result: Tensor = _FakeQuantizeBlend.apply(x, scale, zero_point, q_min, q_max, keep.to(x.dtype))
    return result


def soft_round_fused(
    floor_codes: Tensor, v: Tensor, scale: Tensor, zero_point: Tensor, q_min: int, q_max: int
) -> Tensor:
    """``rounding.soft_quantize`` on floors that are computed once: s * (clamp(floor + h(v) + z, q_min, q_max) - z).

    Args:
        floor_codes: floor(w / s)  # shape: (*)
        v: the trained rounding variable  # shape: (*)
        scale: s; gets its gradient if it asks for one  # shape: broadcastable to (*)
        zero_point: z  # shape: broadcastable to (*)
        q_min: the smallest code.
        q_max: the largest code.

    Returns:
        the softly rounded weight  # shape: (*)
    """
    result: Tensor = _SoftRound.apply(floor_codes, v, scale, zero_point, q_min, q_max)
    return result


class _FakeQuantize(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, zero_point: Tensor, q_min: int, q_max: int) -> Tensor:
        ctx.lower, ctx.upper = _code_range(x, zero_point, q_min, q_max)
        result = _fake_quantize_fresh(x, scale, ctx.lower, ctx.upper)
        ctx.save_for_backward(x, scale, result)
        return result

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        x, scale, result = ctx.saved_tensors
        gradient_x = _unclipped(gradients[0], x, scale, ctx.lower, ctx.upper)
        gradient_scale = _scale_gradient(ctx, gradients[0], result, gradient_x, x, scale)
        return gradient_x, gradient_scale, None, None, None


class _FakeQuantizeBlend(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, zero_point: Tensor, q_min: int, q_max: int, keep: Tensor) -> Tensor:
        ctx.lower, ctx.upper = _code_range(x, zero_point, q_min, q_max)
        quantized = _fake_quantize_fresh(x, scale, ctx.lower, ctx.upper)
        result = torch.lerp(x, quantized, keep, out=quantized)  # exact at both ends, where x + keep * (..) rounds
        ctx.save_for_backward(x, scale, result, keep)
        return result

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        x, scale, result, keep = ctx.saved_tensors
        # An element that is not kept becomes 0, which is never clipped, so its gradient passes; and in the gradient
        # of the scale its two terms, g * result and g * x, are the same.
        gradient_x = _unclipped(gradients[0], x * keep, scale, ctx.lower, ctx.upper)
        gradient_scale = _scale_gradient(ctx, gradients[0], result, gradient_x, x, scale)
        return gradient_x, gradient_scale, None, None, None, None


class _SoftRound(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, floor_codes: Tensor, v: Tensor, scale: Tensor, zero_point: Tensor, q_min: int, q_max: int
    ) -> Tensor:
        sigma = torch.sigmoid(v)
        codes = torch.mul(sigma, ZETA - GAMMA).add_(GAMMA).clamp_(0.0, 1.0).add_(floor_codes).add_(zero_point)
        ctx.save_for_backward(sigma, codes, scale, zero_point)
        ctx.q_min, ctx.q_max = q_min, q_max
        return codes.clamp(q_min, q_max).sub_(zero_point).mul_(scale)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        sigma, codes, scale, zero_point = ctx.saved_tensors
        of_scale = None
        if ctx.needs_input_grad[2]:
            steps = codes.clamp(ctx.q_min, ctx.q_max).sub_(zero_point)
            of_scale = steps.mul_(gradients[0]).sum_to_size(scale.shape)
        gradient = _sigmoid_backward(gradients[0], sigma)
        below, above = -GAMMA / (ZETA - GAMMA), (1.0 - GAMMA) / (ZETA - GAMMA)
        gradient = _hardtanh_backward(gradient, sigma, below, above)  # h strictly between 0 and 1
        gradient = _hardtanh_backward(gradient, codes, float(ctx.q_min), float(ctx.q_max))
        return None, gradient.mul_(scale * (ZETA - GAMMA)), of_scale, None, None, None


def _require_one(scale: Tensor, zero_point: Tensor) -> None:
    for name, value in (("scale", scale), ("zero_point", zero_point)):
        if value.numel() != 1:
            raise ArgumentError(name, "one value for the whole tensor", tuple(value.shape), "use functional.py")


def _reads_numbers(tensor: Tensor) -> bool:
    """Whether the value of a tensor can be had without waiting for a device."""
    return tensor.device.type == "cpu"


def _code_range(x: Tensor, zero_point: Tensor, q_min: int, q_max: int) -> tuple[Bound, Bound]:
    # On the CPU, clamp with numbers is 13 times as fast as with tensors.
    zero = float(zero_point) if _reads_numbers(x) else zero_point.detach().reshape(()).to(x.dtype)
    return q_min - zero, q_max - zero


def _fake_quantize_fresh(x: Tensor, scale: Tensor, lower: Bound, upper: Bound) -> Tensor:
    """x_hat in a fresh buffer; (clamp(r + z, q_min, q_max) - z) is clamp(r, q_min - z, q_max - z), exactly."""
    codes = torch.div(x, scale.reshape(())).round_()
    return codes.clamp_(lower, upper).mul_(scale.reshape(()))  # type: ignore[arg-type]


def _unclipped(gradient: Tensor, x: Tensor, scale: Tensor, lower: Bound, upper: Bound) -> Tensor:
    if not _reads_numbers(x):
        ends = (lower - 0.5) * scale.reshape(()), (upper + 0.5) * scale.reshape(())
        return gradient.masked_fill((x <= torch.minimum(*ends)) | (x >= torch.maximum(*ends)), 0.0)
    step = float(scale)
    first, last = sorted(((lower - 0.5) * step, (upper + 0.5) * step))  # a trained scale may turn negative on its way
    result: Tensor = _hardtanh_backward(gradient, x, first, last)
    return result


def _scale_gradient(
    ctx: Any, gradient: Tensor, result: Tensor, gradient_x: Tensor, x: Tensor, scale: Tensor
) -> Tensor | None:
    """sum(g * (x_hat / s - inside * x / s)) as two inner products: (<g, x_hat> - <g * inside, x>) / s."""
    if not ctx.needs_input_grad[1]:
        return None
    total = _inner(gradient, result) - _inner(gradient_x, x)
    return (total / scale.reshape(())).reshape(scale.shape)


def _inner(first: Tensor, second: Tensor) -> Tensor:
    """sum(first * second), in one pass and with no temporary where both lie in memory densely and in the same order."""
    if first.stride() == second.stride() and _is_dense(first) and _is_dense(second):
        return torch.dot(_in_memory_order(first), _in_memory_order(second))
    return (first * second).sum()


def _is_dense(tensor: Tensor) -> bool:
    if tensor.is_contiguous():
        return True
    return tensor.dim() == 4 and tensor.is_contiguous(memory_format=torch.channels_last)


def _in_memory_order(tensor: Tensor) -> Tensor:
    return tensor.as_strided((tensor.numel(),), (1,), tensor.storage_offset())
