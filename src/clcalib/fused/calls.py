"""The compiled kernels as functions of tensors; shapes and places are the callers' business (``kernels.py``)."""

from __future__ import annotations

import ctypes
import functools
from typing import Any

import torch
from torch import Tensor

from clcalib.fused.build import library
from clcalib.fused.draws import Draw

_P, _I, _Q, _F, _U = ctypes.c_void_p, ctypes.c_int, ctypes.c_int64, ctypes.c_float, ctypes.c_uint32
_ARRAY = (_P, _I)  # address, and whether it holds bfloat16
_GRID = (_F, _F, _F)  # scale, lower, upper
_DRAW = (_U, _U, _I)  # key, tweak, threshold
_LIMITS = (_F, _F)  # floor, ceiling
_SIGNATURES: dict[str, tuple[tuple[Any, ...], Any]] = {
    "activation_forward": ((*_ARRAY, *_ARRAY, *_LIMITS, _Q, *_GRID, *_DRAW, *_ARRAY), None),
    "activation_backward": ((*_ARRAY, *_ARRAY, *_ARRAY, *_LIMITS, _Q, *_GRID, *_DRAW, _P), ctypes.c_double),
    "gather_mix": ((_P, _I, _F, _F, _Q, *_ARRAY, _P, _Q, _Q, *_DRAW, *_ARRAY), None),
    "squared_error": ((*_ARRAY, *_ARRAY, _Q, _Q, _F, _P), ctypes.c_double),
    "soft_round_forward": ((_P, _P, _P, _P, _Q, _Q, _F, _F, *_ARRAY), None),
    "soft_round_backward": ((*_ARRAY, _P, _P, _P, _P, _Q, _Q, _F, _F, _P), None),
    "soft_round_scale_gradient": ((*_ARRAY, _P, _P, _P, _Q, _Q, _F, _F, _P), None),
    "adam": ((_P, _P, _P, _P, _Q, *(_F,) * 6), None),
    "grid_errors": ((_P, _P, _Q, _P, _P, _P, _Q, _F, _F, _P), None),
    "fake_quantize": ((_P, _Q, *(_F,) * 4, _P), None),
    "encode": ((_P, _Q, _Q, _I, _F, _F, _P), _I),
    "histogram": ((_P, _Q, _F, _I, _I, _P), None),
    "rounding_penalty": ((_P, _Q, _F, _P), ctypes.c_double),
    "cosine_info_nce": ((_P, _P, _P, _Q, _Q, _Q, _F, _F, _P), ctypes.c_double),
    "has_weight_gradient": ((), ctypes.c_int),
    "has_tiles": ((), ctypes.c_int),
    "weight_gradient": ((_P, _P, *(_Q,) * 5, _P), None),
}
FLOATS = (torch.float32, torch.bfloat16)
Grid = tuple[float, float, float]
Limits = tuple[float, float]


@functools.cache
def is_available() -> bool:
    """Whether the compiled kernels can be used; builds them at the first call."""
    return library() is not None


@functools.cache
def has_weight_gradient() -> bool:
    """Whether ``weight_gradient`` was compiled for this processor."""
    return is_available() and bool(_function("has_weight_gradient")())


@functools.cache
def has_tiles() -> bool:
    """Whether this processor multiplies tiles of bfloat16 (AMX), which PyTorch's convolutions do there."""
    return is_available() and bool(_function("has_tiles")())


def can_take(*tensors: Tensor) -> bool:
    """Whether the compiled kernels are there and read these tensors: dense, on the CPU, float32 or bfloat16."""
    for tensor in tensors:
        if tensor.device.type != "cpu" or tensor.dtype not in FLOATS or not is_dense(tensor) or not tensor.numel():
            return False
    return is_available()


def is_dense(tensor: Tensor) -> bool:
    """Whether a tensor fills its memory, contiguous or channels last."""
    return tensor.is_contiguous() or (tensor.ndim == 4 and tensor.is_contiguous(memory_format=torch.channels_last))


@functools.cache
def _function(name: str) -> Any:
    loaded = library()
    assert loaded is not None
    function = getattr(loaded, f"clcalib_{name}")
    function.argtypes, function.restype = _SIGNATURES[name]
    return function


def _array(tensor: Tensor | None) -> tuple[int | None, bool]:
    return (None, False) if tensor is None else (tensor.data_ptr(), tensor.dtype == torch.bfloat16)


def activation_forward(
    x: Tensor, residual: Tensor | None, limits: Limits, grid: Grid, draw: Draw, dtype: torch.dtype
) -> Tensor:
    """Keep ? x_hat : x' with x' = clamp(x + residual, *limits)."""
    out = torch.empty_like(x, dtype=dtype)
    _function("activation_forward")(
        *_array(x), *_array(residual), *limits, x.numel(), *grid, *draw, out.data_ptr(), dtype == torch.bfloat16
    )
    return out


def activation_backward(
    gradient: Tensor, x: Tensor, residual: Tensor | None, limits: Limits, grid: Grid, draw: Draw
) -> tuple[Tensor, float]:
    """The gradient of x (and of the residual), and of the scale."""
    out = torch.empty_like(x)
    total = _function("activation_backward")(
        *_array(gradient), *_array(x), *_array(residual), *limits, x.numel(), *grid, *draw, out.data_ptr()
    )
    return out, total


def gather_mix(
    quantized: Tensor,
    floating: Tensor | None,
    index: Tensor,
    elements: int,
    draw: Draw,
    dtype: torch.dtype,
    codes: tuple[int, float, float] | None = None,
) -> Tensor:
    """Rows of two caches (N, ...), mixed, as (B, elements); ``codes`` are the bits, scale and offset of the first."""
    out = torch.empty((len(index), elements), dtype=dtype, device=quantized.device)
    kind = 1 if quantized.dtype == torch.bfloat16 else 0
    scale, offset = 1.0, 0.0
    if codes is not None:
        bits, scale, offset = codes
        kind = 3 if bits == 4 else 2
    stride = quantized.stride(0) * quantized.element_size()
    _function("gather_mix")(
        *(quantized.data_ptr(), kind, scale, offset, stride),
        *_array(floating),
        *(index.data_ptr(), len(index), elements, *draw),
        *_array(out),
    )
    return out


def weight_gradient(x: Tensor, gradient: Tensor) -> Tensor:
    """The weight's gradient (K, C, 3, 3) of a convolution with stride and padding 1, channels last.

    Both arguments are bfloat16 and channels last, x with an even width and 16 channels or a multiple of them, the
    gradient with 8 or a multiple.
    """
    (images, inputs, height, width), outputs = x.shape, gradient.shape[1]
    out = torch.empty((outputs, inputs, 3, 3), memory_format=torch.channels_last, device=x.device)
    sizes = images, height, width, inputs, outputs
    _function("weight_gradient")(x.data_ptr(), gradient.data_ptr(), *sizes, out.data_ptr())
    return out


def squared_error(output: Tensor, target: Tensor, factor: float) -> tuple[float, Tensor]:
    """The sum of the squares of output - target, and factor * (output - target)."""
    gradient = torch.empty_like(output)
    rows = len(output) if output.ndim > 1 else 1
    total = _function("squared_error")(
        *_array(output), *_array(target), rows, output.numel() // rows, factor, gradient.data_ptr()
    )
    return total, gradient


def soft_round_forward(
    floors: Tensor, v: Tensor, scale: Tensor, zero_point: Tensor, bounds: tuple[float, float], dtype: torch.dtype
) -> Tensor:
    """Softly rounded weights; bounds are q_min and q_max."""
    out = torch.empty_like(v, dtype=dtype)
    _function("soft_round_forward")(*_weight(floors, v, scale, zero_point), *bounds, *_array(out))
    return out


def soft_round_backward(
    gradient: Tensor, floors: Tensor, v: Tensor, scale: Tensor, zero_point: Tensor, bounds: tuple[float, float]
) -> Tensor:
    """The gradient of v."""
    out = torch.empty_like(v)
    arrays = _weight(floors, v, scale, zero_point)
    _function("soft_round_backward")(*_array(gradient), *arrays, *bounds, out.data_ptr())
    return out


def soft_round_scale_gradient(
    gradient: Tensor, floors: Tensor, v: Tensor, zero_point: Tensor, bounds: tuple[float, float]
) -> Tensor:
    """The gradient of the scale, in the shape of the zero point."""
    out = torch.empty_like(zero_point)
    channels = zero_point.numel()
    arrays = floors.data_ptr(), v.data_ptr(), zero_point.data_ptr(), channels, v.numel() // channels
    _function("soft_round_scale_gradient")(*_array(gradient), *arrays, *bounds, out.data_ptr())
    return out


def _weight(floors: Tensor, v: Tensor, scale: Tensor, zero_point: Tensor) -> tuple[int, ...]:
    channels = scale.numel()
    return (
        floors.data_ptr(), v.data_ptr(), scale.data_ptr(), zero_point.data_ptr(), channels, v.numel() // channels
    )  # fmt: skip


def rounding_penalty(v: Tensor, beta: float) -> tuple[float, Tensor]:
    """sum(1 - |2 h(v) - 1|^beta) and its gradient in v."""
    gradient = torch.empty_like(v)
    return _function("rounding_penalty")(v.data_ptr(), v.numel(), beta, gradient.data_ptr()), gradient


def cosine_info_nce(
    queries: Tensor, columns: Tensor, positive: Tensor, least: float, sharpness: float
) -> tuple[float, Tensor]:
    """InfoNCE of queries (B, d) on keys of length one (d, M), and its gradient; -1 where a positive is no key."""
    gradient, (width, count) = torch.empty_like(queries), columns.shape
    arrays = queries.data_ptr(), columns.data_ptr(), positive.data_ptr()
    sizes = len(queries), count, width
    return _function("cosine_info_nce")(*arrays, *sizes, least, sharpness, gradient.data_ptr()), gradient


def adam(parameter: Tensor, gradient: Tensor, mean: Tensor, square: Tensor, *settings: float) -> None:
    """One step of Adam, in place: rate, beta of the mean and of the square, epsilon, and both bias corrections."""
    arrays = parameter.data_ptr(), gradient.data_ptr(), mean.data_ptr(), square.data_ptr()
    _function("adam")(*arrays, parameter.numel(), *settings)


def fake_quantize(x: Tensor, scale: float, zero_point: float, q_min: int, q_max: int) -> Tensor:
    """s * (clamp(round(x / s) + z, q_min, q_max) - z), of float32."""
    out = torch.empty_like(x)
    _function("fake_quantize")(x.data_ptr(), x.numel(), scale, zero_point, q_min, q_max, out.data_ptr())
    return out


def encode(values: Tensor, bits: int, scale: float, origin: float) -> Tensor | None:
    """Values (B, E) on a grid, float32, as codes of 8 or 4 bits, (B, E) or (B, (E + 1) // 2) uint8.

    value = (code - origin) * scale; None where one of them would not come back bit for bit.
    """
    rows, elements = values.shape
    out = torch.empty((rows, elements if bits == 8 else (elements + 1) // 2), dtype=torch.uint8, device=values.device)
    is_exact = _function("encode")(values.data_ptr(), rows, elements, bits, scale, origin, out.data_ptr())
    return out if is_exact else None


def histogram(values: Tensor, width: float, below: int, counts: Tensor) -> None:
    """Count float32 values into ``counts``, int64: each in the bin round(value / width) + below, or the nearest."""
    _function("histogram")(values.data_ptr(), values.numel(), width, below, len(counts), counts.data_ptr())


def grid_errors(
    values: Tensor, counts: Tensor | None, rows: Tensor, scale: Tensor, zero: Tensor, top: int, exponent: float
) -> Tensor:
    """For P candidates on rows of values (C, N): sum counts * |clamp(round(u), 0, top) - u|^p, u = x / scale + zero."""
    totals = torch.empty_like(scale)
    often = None if counts is None else counts.data_ptr()
    _function("grid_errors")(
        *(values.data_ptr(), often, values.shape[1], rows.data_ptr(), scale.data_ptr(), zero.data_ptr()),
        *(len(rows), float(top), exponent, totals.data_ptr()),
    )
    return totals
