"""The elementwise passes of ``kernels.cpp`` for a GPU, in Triton; only ``device.py`` imports this.

Formulas, masks and the treatment of NaN and of ties are those of the C++ kernels.  Arrays are dense and lie in memory
in the same order; arithmetic is float32; codes come from a division that is rounded as IEEE says (``/`` is not, on a
GPU).  Sums are written down block by block and added afterwards in their order: no atomics, so the bits of a result
do not depend on which block was done first.  Numbers that change from step to step are read from memory: a launch that
is recorded and played back would repeat those that it was given.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from clcalib.fused.draws import Draw, words_on

BLOCK = 1024
NONE, SOME, ALL = 0, 1, 2  # of the elements keep the quantized value
Limits = tuple[float, float]


@triton.jit
def _scramble(x):
    x ^= x >> 16
    x *= 0x7FEB352D
    x ^= x >> 15
    x *= 0x846CA68B
    x ^= x >> 16
    return x


@triton.jit
def _keep(places, key, tweak, threshold):
    words = (places >> 2).to(tl.uint32) ^ tl.load(key).to(tl.uint32, bitcast=True)
    words = _scramble(_scramble(words) + tl.load(tweak).to(tl.uint32, bitcast=True))
    return ((words >> ((places & 3) * 8).to(tl.uint32)) & 255).to(tl.int32) < threshold


@triton.jit
def _round(x):  # to the nearest, halves to even; beyond 2^22 codes are far outside of every grid
    shifted = (x + 12582912.0) - 12582912.0  # 1.5 * 2^23
    return tl.where(tl.abs(x) < 4194304.0, shifted, x)


@triton.jit
def _clamp(x, lower, upper):  # passes NaN on
    x = tl.where(x < lower, lower, x)
    return tl.where(x > upper, upper, x)


@triton.jit
def _places(count, block: tl.constexpr):
    places = tl.program_id(0).to(tl.int64) * block + tl.arange(0, block)
    return places, places < count


@triton.jit
def _sum_of(a, residual, places, inside, has_residual: tl.constexpr):
    x = tl.load(a + places, mask=inside, other=0.0).to(tl.float32)
    if has_residual:
        x += tl.load(residual + places, mask=inside, other=0.0).to(tl.float32)
    return x


@triton.jit(do_not_specialize=["key", "tweak", "threshold", "floor", "ceiling"])
def _activation_forward(
    a, residual, scale, zero_point, key, tweak, out, count, q_min, q_max, floor, ceiling, threshold,
    has_residual: tl.constexpr, has_limits: tl.constexpr, kept: tl.constexpr, block: tl.constexpr,
):  # fmt: skip
    places, inside = _places(count, block)
    x = _sum_of(a, residual, places, inside, has_residual)
    if has_limits:
        x = _clamp(x, floor, ceiling)
    if kept != 0:
        s, z = tl.load(scale).to(tl.float32), tl.load(zero_point).to(tl.float32)
        quantized = _clamp(_round(tl.div_rn(x, s)), q_min - z, q_max - z) * s
        if kept == 1:
            quantized = tl.where(_keep(places, key, tweak, threshold), quantized, x)
        x = quantized
    tl.store(out + places, x.to(out.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=["key", "tweak", "threshold", "floor", "ceiling"])
def _activation_backward(
    gradient, a, residual, scale, zero_point, key, tweak, out, parts, count, q_min, q_max, floor, ceiling, threshold,
    has_residual: tl.constexpr, has_limits: tl.constexpr, kept: tl.constexpr, block: tl.constexpr,
):  # fmt: skip
    places, inside = _places(count, block)
    g = tl.load(gradient + places, mask=inside, other=0.0).to(tl.float32)
    x = _sum_of(a, residual, places, inside, has_residual)
    blocked = places < 0  # none yet
    if has_limits:
        blocked = ~((x > floor) & (x < ceiling))
        x = _clamp(x, floor, ceiling)
    if kept != 0:
        s, z = tl.load(scale).to(tl.float32), tl.load(zero_point).to(tl.float32)
        steps = tl.div_rn(x, s)
        code = _round(steps)
        nearest = _clamp(code, q_min - z, q_max - z)
        is_clipped = nearest != code
        slope = tl.where(is_clipped, nearest, code - steps)
        if kept == 1:
            keep = _keep(places, key, tweak, threshold)
            slope = tl.where(keep, slope, 0.0)
            is_clipped = is_clipped & keep
        tl.store(parts + tl.program_id(0), tl.sum(tl.where(inside, g * slope, 0.0), axis=0))
        blocked = blocked | is_clipped
    tl.store(out + places, tl.where(blocked, 0.0, g).to(out.dtype.element_ty), mask=inside)


@triton.jit
def _soft_round_forward(floors, v, scale, zero_point, out, count, row, q_min, q_max, block: tl.constexpr):
    places, inside = _places(count, block)
    channels = places // row
    s, z = tl.load(scale + channels, mask=inside), tl.load(zero_point + channels, mask=inside)
    h = _clamp(tl.sigmoid(tl.load(v + places, mask=inside)) * 1.2 - 0.1, 0.0, 1.0)
    codes = _clamp(h + tl.load(floors + places, mask=inside) + z, q_min, q_max)
    tl.store(out + places, ((codes - z) * s).to(out.dtype.element_ty), mask=inside)


@triton.jit
def _soft_round_backward(
    gradient, floors, v, scale, zero_point, out, count, row, q_min, q_max, block: tl.constexpr
):  # fmt: skip
    places, inside = _places(count, block)
    channels = places // row
    s, z = tl.load(scale + channels, mask=inside), tl.load(zero_point + channels, mask=inside)
    sigma = tl.sigmoid(tl.load(v + places, mask=inside))
    h = sigma * 1.2 - 0.1
    code = _clamp(h, 0.0, 1.0) + tl.load(floors + places, mask=inside) + z
    moves = (h > 0.0) & (h < 1.0) & (code > q_min) & (code < q_max)
    g = tl.load(gradient + places, mask=inside).to(tl.float32)
    tl.store(out + places, tl.where(moves, g * (s * 1.2) * sigma * (1.0 - sigma), 0.0), mask=inside)


@triton.jit(do_not_specialize=["beta"])
def _rounding_penalty(v, beta, gradient, parts, count, block: tl.constexpr):
    places, inside = _places(count, block)
    sigma = tl.sigmoid(tl.load(v + places, mask=inside, other=0.0))
    centred = 2.0 * _clamp(sigma * 1.2 - 0.1, 0.0, 1.0) - 1.0
    size = tl.abs(centred)
    exponent = tl.load(beta).to(tl.float32)
    power = tl.exp2(tl.log2(tl.where(size < 1e-30, 1e-30, size)) * exponent)
    tl.store(parts + tl.program_id(0), tl.sum(tl.where(inside, 1.0 - power, 0.0), axis=0))
    safe = tl.where(size < 1e-30, 1e-30, centred)
    slope = -2.4 * exponent * power / safe * (sigma * (1.0 - sigma))
    tl.store(gradient + places, tl.where(size < 1.0, slope, 0.0), mask=inside)


def activation_forward(
    x: Tensor,
    residual: Tensor | None,
    grid: tuple[Tensor, Tensor, int, int],
    limits: Limits,
    draw: Draw,
    dtype: torch.dtype,
) -> Tensor:
    """Keep ? x_hat : x' with x' = clamp(x + residual, *limits); grid is scale, zero point, q_min and q_max."""
    out = torch.empty_like(x, dtype=dtype)
    _launch(
        _activation_forward, x, (x, residual, *_arrays(x, grid, draw), out), _settings(grid, limits, draw, residual)
    )
    return out


def activation_backward(
    gradient: Tensor,
    x: Tensor,
    residual: Tensor | None,
    grid: tuple[Tensor, Tensor, int, int],
    limits: Limits,
    draw: Draw,
) -> tuple[Tensor, Tensor]:
    """The gradient of x (and of the residual), and of the scale, ()."""
    out, parts = torch.empty_like(x), _parts(x)
    if draw.threshold <= 0:
        parts.zero_()
    arrays = (gradient, x, residual, *_arrays(x, grid, draw), out, parts)
    _launch(_activation_backward, x, arrays, _settings(grid, limits, draw, residual))
    return out, parts.sum(dtype=torch.float64)


def soft_round_forward(
    floors: Tensor, v: Tensor, scale: Tensor, zero_point: Tensor, bounds: tuple[float, float], dtype: torch.dtype
) -> Tensor:
    """Softly rounded weights; bounds are q_min and q_max."""
    out = torch.empty_like(v, dtype=dtype)
    _launch(_soft_round_forward, v, (floors, v, scale, zero_point, out), _rows(v, scale, bounds))
    return out


def soft_round_backward(
    gradient: Tensor, floors: Tensor, v: Tensor, scale: Tensor, zero_point: Tensor, bounds: tuple[float, float]
) -> Tensor:
    """The gradient of v."""
    out = torch.empty_like(v)
    _launch(_soft_round_backward, v, (gradient, floors, v, scale, zero_point, out), _rows(v, scale, bounds))
    return out


def rounding_penalty(v: Tensor, beta: Tensor) -> tuple[Tensor, Tensor]:
    """sum(1 - |2 h(v) - 1|^beta), (), and its gradient in v; beta is (), on the device of v."""
    gradient, parts = torch.empty_like(v), _parts(v)
    _launch(_rounding_penalty, v, (v, beta, gradient, parts), {})
    return parts.sum(dtype=torch.float64).float(), gradient


def _launch(kernel: Any, like: Tensor, arrays: tuple[Tensor | None, ...], settings: dict[str, object]) -> None:
    with torch.cuda.device_of(like):  # Triton launches on the current device, not on that of the tensors
        blocks = triton.cdiv(like.numel(), BLOCK)
        # Products that are fused into sums would round otherwise than PyTorch does.
        kernel[(blocks,)](*arrays, count=like.numel(), block=BLOCK, enable_fp_fusion=False, **settings)


def _arrays(x: Tensor, grid: tuple[Tensor, Tensor, int, int], draw: Draw) -> tuple[Tensor, ...]:
    """Scale, zero point, key and tweak; x stands for those that the kernel does not read, which may be anywhere."""
    kept = _kept(draw)
    return *((x, x) if kept == NONE else grid[:2]), *(words_on(draw, x.device) if kept == SOME else (x, x))


def _kept(draw: Draw) -> int:
    return NONE if draw.threshold <= 0 else ALL if draw.threshold >= 256 else SOME


def _settings(
    grid: tuple[Tensor, Tensor, int, int], limits: Limits, draw: Draw, residual: Tensor | None
) -> dict[str, object]:
    floor, ceiling = map(float, limits)
    return {
        "q_min": float(grid[2]),
        "q_max": float(grid[3]),
        "floor": floor,
        "ceiling": ceiling,
        "threshold": draw.threshold,
        "has_residual": residual is not None,
        "has_limits": limits != (-float("inf"), float("inf")),
        "kept": _kept(draw),
    }


def _rows(v: Tensor, scale: Tensor, bounds: tuple[float, float]) -> dict[str, object]:
    return {"row": v.numel() // scale.numel(), "q_min": float(bounds[0]), "q_max": float(bounds[1])}


def _parts(like: Tensor) -> Tensor:
    return torch.empty(triton.cdiv(like.numel(), BLOCK), dtype=torch.float32, device=like.device)
