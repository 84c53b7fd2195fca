"""The arithmetic of uniform affine quantization, and nothing else.

``q = clamp(round(x / s) + z, q_min, q_max)`` and ``x_hat = (q - z) * s``, halves rounded to even.  The straight-through
estimator (Bengio et al. 2013, arXiv:1308.3432) takes d round(x) / dx = 1; applied to the composition it gives the
gradient of the step size of LSQ (Esser et al. 2020, "Learned Step Size Quantization", equation 3) by itself.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from clcalib.fused import calls


class _RoundStraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return torch.round(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        return gradients[0]


class _ClampInclusive(torch.autograd.Function):
    # From PyTorch 2.14 on, the gradient of torch.clamp is 0 on the bounds themselves, where it was 1 before.  Codes sit
    # on the bounds all the time (at 2 bits, half of all codes do) without being clipped, so this must not depend on it.
    @staticmethod
    def forward(ctx: Any, x: Tensor, lower: float, upper: float) -> Tensor:
        ctx.save_for_backward(x)
        ctx.lower, ctx.upper = lower, upper
        return torch.clamp(x, lower, upper)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        (x,) = ctx.saved_tensors
        return gradients[0] * ((x >= ctx.lower) & (x <= ctx.upper)), None, None


class _ScaleGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, factor: float) -> Tensor:
        ctx.factor = factor
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        return gradients[0] * ctx.factor, None


def round_ste(x: Tensor) -> Tensor:
    """Round to the nearest whole number, halves to even, with the gradient of the identity.

    Args:
        x: any float tensor  # shape: (*)

    Returns:
        round(x)  # shape: (*)
    """
    rounded: Tensor = _RoundStraightThrough.apply(x)
    return rounded


def clamp_inclusive(x: Tensor, lower: float, upper: float) -> Tensor:
    """min(max(x, lower), upper), with gradient 1 from bound to bound, the bounds included, whatever PyTorch's version.

    Args:
        x: any float tensor  # shape: (*)
        lower: the lower bound.
        upper: the upper bound.

    Returns:
        the clamped values  # shape: (*)
    """
    clamped: Tensor = _ClampInclusive.apply(x, lower, upper)
    return clamped


def scale_gradient(x: Tensor, factor: float) -> Tensor:
    """The identity, whose gradient is multiplied by ``factor`` on the way back.

    LSQ (section 2.2) uses ``1 / sqrt(numel * q_max)`` on the step size, so that it learns at the pace of the weights.

    Args:
        x: any float tensor  # shape: (*)
        factor: what the gradient is multiplied by.

    Returns:
        x, bit for bit  # shape: (*)
    """
    same: Tensor = _ScaleGradient.apply(x, factor)
    return same


def quantize(x: Tensor, scale: Tensor, zero_point: Tensor, q_min: int, q_max: int) -> Tensor:
    """The codes ``clamp(round(x / s) + z, q_min, q_max)``, as whole numbers in a float tensor; not differentiable.

    Args:
        x: the values  # shape: (*)
        scale: s  # shape: broadcastable to (*)
        zero_point: z  # shape: broadcastable to (*)
        q_min: the smallest code.
        q_max: the largest code.

    Returns:
        the codes  # shape: (*)
    """
    return torch.clamp(torch.round(x.detach() / scale.detach()) + zero_point, q_min, q_max)


def dequantize(codes: Tensor, scale: Tensor, zero_point: Tensor) -> Tensor:
    """The values ``(q - z) * s`` of codes.

    Args:
        codes: q, of any number type  # shape: (*)
        scale: s  # shape: broadcastable to (*)
        zero_point: z  # shape: broadcastable to (*)

    Returns:
        the values, in the float type of ``scale``  # shape: (*)
    """
    return (codes - zero_point) * scale


def fake_quantize(x: Tensor, scale: Tensor, zero_point: Tensor, q_min: int, q_max: int) -> Tensor:
    """Quantize and come back: ``x_hat = (clamp(round(x / s) + z, q_min, q_max) - z) * s``, differentiable in x and s.

    d x_hat / dx = 1 where q_min <= round(x / s) + z <= q_max, else 0.
    d x_hat / ds = round(x / s) - x / s there, else q_min - z or q_max - z.

    Args:
        x: the values  # shape: (*)
        scale: s  # shape: broadcastable to (*)
        zero_point: z  # shape: broadcastable to (*)
        q_min: the smallest code.
        q_max: the largest code.

    Returns:
        the values on the grid  # shape: (*)

    Example:
        >>> fake_quantize(torch.tensor([0.4, 1.6, 9.0]), torch.tensor(1.0), torch.tensor(0.0), 0, 3)
        tensor([0., 2., 3.])
    """
    if not (torch.is_grad_enabled() and (x.requires_grad or scale.requires_grad)):
        if _contexts and _can_be_compiled(x, scale, zero_point):
            return calls.fake_quantize(x, float(scale), float(zero_point), q_min, q_max)
        codes = (x / scale).round_() + zero_point  # the same operations, fewer of them on fresh memory
        return codes.clamp_(q_min, q_max).sub(zero_point).mul_(scale)
    return (clamp_inclusive(round_ste(x / scale) + zero_point, q_min, q_max) - zero_point) * scale


@contextlib.contextmanager
def compiled_passes() -> Iterator[None]:
    """Inside, ``fake_quantize`` without a gradient is one compiled pass where that can be had; the same bit for bit.

    Not everywhere, since a graph that is traced or compiled from a finished network must be one of PyTorch's operators.
    """
    global _contexts
    with _lock:
        _contexts += 1
    try:
        yield
    finally:
        with _lock:
            _contexts -= 1


_contexts = 0  # of the contexts that any thread is in
_lock = threading.Lock()


def _can_be_compiled(x: Tensor, scale: Tensor, zero_point: Tensor) -> bool:
    """Whether the pass takes these: float32 on the CPU, real values, with one scale."""
    is_one = scale.numel() == zero_point.numel() == 1 and max(scale.dim(), zero_point.dim()) <= x.dim()
    tensors = x, scale, zero_point
    is_real = type(x) is Tensor and not torch.compiler.is_compiling()  # another thread may trace meanwhile
    return is_one and is_real and all(t.dtype == torch.float32 for t in tensors) and calls.can_take(*tensors)
