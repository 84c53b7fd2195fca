"""The kernels of a GPU as functions with gradients; where there is no Triton, PyTorch's own passes do the work.

No number is read from a tensor here: to wait for one would let the device run dry at every call.
"""

from __future__ import annotations

import functools
import importlib.util
import os
import warnings
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from clcalib.errors import SlowPathWarning
from clcalib.fused.calls import FLOATS, is_dense
from clcalib.fused.draws import ALL, Draw, keep_mask

KIND = "cuda"
NO_LIMITS = (-float("inf"), float("inf"))
Grid = tuple[Tensor, Tensor, int, int]  # scale, zero point, q_min, q_max


def can_take(*tensors: Tensor) -> bool:
    """Whether the kernels are there and read these tensors: dense, on one GPU, float32 or bfloat16."""
    device = tensors[0].device
    if device.type != KIND:
        return False
    for tensor in tensors:
        if tensor.device != device or tensor.dtype not in FLOATS or not is_dense(tensor) or not tensor.numel():
            return False
    return is_available(device)


@functools.cache
def is_available(device: torch.device) -> bool:
    """Whether the kernels can be compiled for this device and compute there what they should; tried once.

    Warns:
        SlowPathWarning: there is Triton, but it cannot be used.
    """
    if os.environ.get("CLCALIB_NATIVE") == "0" or importlib.util.find_spec("triton") is None:
        return False
    try:
        problem = "" if _computes_right(device) else "their results differ from those of PyTorch"
    except Exception as error:  # a missing compiler, an old driver, a new device: nothing of that must stop a run
        problem = f"{type(error).__name__}: {error}".splitlines()[0]
    if problem:
        warnings.warn(
            f"calibration runs without its fused kernels on {device}: {problem}; it takes more time there, and gives "
            "the same result up to rounding; set CLCALIB_NATIVE=0 to take that path without this notice",
            SlowPathWarning,
            stacklevel=2,
        )
    return not problem


def _computes_right(device: torch.device) -> bool:
    """A mask, a grid and a sum over more than one block, against PyTorch."""
    x = torch.arange(-1500, 1500, device=device) / 700
    scale, zero_point, draw = torch.tensor(0.3, device=device), torch.ones((), device=device), Draw(2**31 + 5, 6, 100)
    keep = keep_mask(x.shape, draw, device)
    nearest = (x / scale).round().clamp(-1.0, 2.0)
    grid = (scale, zero_point, 0, 3)
    value = kernels().activation_forward(x, None, grid, NO_LIMITS, draw, torch.float32)
    _, total = kernels().activation_backward(torch.ones_like(x), x, None, grid, NO_LIMITS, draw)
    inside = (x / scale).round() == nearest
    expected = (keep * (nearest - inside * x / scale)).sum()
    return torch.equal(value, torch.where(keep > 0, nearest * scale, x)) and bool((total - expected).abs() < 1e-2)


@functools.cache
def kernels() -> ModuleType:
    """The module of the kernels; it imports Triton."""
    import clcalib.fused.triton_kernels as found

    return found


def activation(
    x: Tensor,
    residual: Tensor | None,
    grid: Grid,
    limits: tuple[float, float],
    draw: Draw = ALL,
    gradient_factor: float = 1.0,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """``quant.kernels.activation`` of tensors that ``can_take`` takes; the grid is scale, zero point, q_min, q_max."""
    result: Tensor = _Activation.apply(x, residual, grid[0], (*grid[1:], limits, draw, gradient_factor, dtype))
    return result


def soft_round(
    floor_codes: Tensor,
    v: Tensor,
    scale: Tensor,
    zero_point: Tensor,
    bounds: tuple[float, float],
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """``quant.kernels.soft_round`` of float32 tensors that ``can_take`` takes, one scale or one for each row."""
    result: Tensor = _SoftRound.apply(floor_codes, v, scale, zero_point, bounds, dtype)
    return result


def rounding_penalty(v: Tensor, beta: float | Tensor) -> Tensor:
    """``soft.rounding_penalty`` of a float32 tensor that ``can_take`` takes."""
    if not isinstance(beta, Tensor):
        beta = torch.full((), beta, dtype=torch.float64, device=v.device)
    result: Tensor = _RoundingPenalty.apply(v, beta)
    return result


class _Activation(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, residual: Tensor | None, scale: Tensor, settings: tuple[Any, ...]) -> Tensor:
        zero_point, *ctx.codes, ctx.limits, ctx.draw, ctx.factor, dtype = settings
        ctx.save_for_backward(x, residual, scale, zero_point)
        result: Tensor = kernels().activation_forward(
            x, residual, (scale, zero_point, *ctx.codes), ctx.limits, ctx.draw, dtype
        )
        return result

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        x, residual, scale, zero_point = ctx.saved_tensors
        grid = scale, zero_point, *ctx.codes
        gradient, total = kernels().activation_backward(
            in_order_of(x, gradients[0]), x, residual, grid, ctx.limits, ctx.draw
        )
        of_residual = gradient.to(residual.dtype) if ctx.needs_input_grad[1] else None
        of_scale = (total * ctx.factor).to(scale.dtype).reshape(scale.shape) if ctx.needs_input_grad[2] else None
        return gradient, of_residual, of_scale, None


class _SoftRound(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, floor_codes: Tensor, v: Tensor, scale: Tensor, zero_point: Tensor, *rest: Any) -> Tensor:
        ctx.bounds, dtype = rest
        ctx.save_for_backward(floor_codes, v, scale, zero_point)
        result: Tensor = kernels().soft_round_forward(floor_codes, v, scale, zero_point, ctx.bounds, dtype)
        return result

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        _, v, *_ = saved = ctx.saved_tensors
        return None, kernels().soft_round_backward(in_order_of(v, gradients[0]), *saved, ctx.bounds), *[None] * 4


class _RoundingPenalty(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, v: Tensor, beta: Tensor) -> Tensor:
        total, gradient = kernels().rounding_penalty(v, beta)
        ctx.save_for_backward(gradient)
        result: Tensor = total
        return result

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        (gradient,) = ctx.saved_tensors
        return gradient * gradients[0], None


def in_order_of(tensor: Tensor, gradient: Tensor) -> Tensor:
    """The gradient in the memory order of the tensor that it belongs to, in a type that the kernels read."""
    if gradient.dtype not in FLOATS:
        gradient = gradient.float()
    if gradient.stride() == tensor.stride():
        return gradient
    return torch.empty_like(tensor, dtype=gradient.dtype).copy_(gradient)
