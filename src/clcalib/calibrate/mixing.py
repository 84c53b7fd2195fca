"""What a unit reads while it is optimised: the quantized prefix, the float prefix, or an element-wise mix of both."""

from __future__ import annotations

import torch
from torch import Tensor

from clcalib.calibrate.store import Rows
from clcalib.errors import ArgumentError
from clcalib.fused import calls
from clcalib.fused.draws import ALL, Draw, keep_mask
from clcalib.quant.kernels import memory_format_of


def mix_rows(quantized: Rows, floating: Rows, index: Tensor, draw: Draw, dtype: torch.dtype = torch.float32) -> Tensor:
    """``mix`` of the rows ``index`` of two stores, in one pass where the compiled kernels can be had.

    Args:
        quantized: all rows behind the quantized prefix  # shape: (N, *)
        floating: all rows behind the float prefix  # shape: (N, *)
        index: the rows that are wanted  # shape: (B,) int64
        draw: which elements come from the quantized prefix.
        dtype: of the result.

    Returns:
        the mixed rows  # shape: (B, *)
    """
    if not quantized.dtype.is_floating_point:  # indices or masks, of which no share is between two
        return quantized.take(index)
    if draw.threshold <= 0 or quantized is floating:
        quantized, draw = floating, ALL
    if draw.threshold >= 256:
        floating = quantized
    if not _can_take(quantized, floating, dtype):
        if quantized is floating:
            return quantized.take(index).to(dtype)  # rows in files are read once
        return mix(quantized.take(index), floating.take(index), draw).to(dtype)
    grid, first, second = quantized.grid, quantized.storage, floating.storage
    assert first is not None
    other = None if draw.threshold >= 256 else second
    codes = None if grid is None else (grid.bits_stored, grid.scale, grid.offset - grid.zero_point)
    index = index.to("cpu", torch.int64).contiguous()
    if len(index) and not (int(index.min()) >= 0 and int(index.max()) < len(quantized)):
        raise ArgumentError(
            "index", f"rows from 0 to {len(quantized) - 1}", f"{int(index.min())} to {int(index.max())}"
        )
    return quantized.shaped(calls.gather_mix(first, other, index, quantized.elements, draw, dtype, codes))


def _can_take(quantized: Rows, floating: Rows, dtype: torch.dtype) -> bool:
    if quantized.storage is None or floating.storage is None or dtype not in calls.FLOATS:
        return False
    is_grid = quantized.grid is not None and quantized.device.type == "cpu" and calls.is_available()
    same = quantized.is_channels_last == floating.is_channels_last
    same = same and quantized.shape == floating.shape and len(quantized) == len(floating)
    floats = floating is quantized or (floating.grid is None and calls.can_take(floating.storage))
    return same and floats and (is_grid or calls.can_take(quantized.storage))


def mix(quantized: Tensor, floating: Tensor, draw: Draw) -> Tensor:
    """Take each element from ``quantized`` where the draw keeps it, else from ``floating``.

    Args:
        quantized: the tensor behind the quantized prefix, returned as it is if the draw keeps everything.
        floating: the same behind the float prefix, returned as it is if the draw keeps nothing.
        draw: which elements come from the quantized prefix.

    Source: QDrop (Wei et al., 2022), eq. 9, on the unit's input.
    """
    if draw.threshold >= 256:
        return quantized
    if draw.threshold <= 0:
        return floating
    mask = keep_mask(quantized.shape, draw, quantized.device, memory_format=memory_format_of(quantized))
    return torch.lerp(floating, quantized, mask.to(quantized.dtype))
