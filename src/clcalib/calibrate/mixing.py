"""What a unit reads while it is optimised: the quantized prefix, the float prefix, or an element-wise mix of both."""

from __future__ import annotations

import torch
from torch import Tensor

from clcalib.fused import calls
from clcalib.fused.draws import Draw, keep_mask
from clcalib.quant.kernels import memory_format_of


def mix_rows(
    quantized: Tensor, floating: Tensor, index: Tensor, draw: Draw, dtype: torch.dtype = torch.float32
) -> Tensor:
    """``mix`` of the rows ``index`` of two caches, in one pass where the compiled kernels can be had.

    Args:
        quantized: all rows behind the quantized prefix  # shape: (N, *)
        floating: all rows behind the float prefix  # shape: (N, *)
        index: the rows that are wanted  # shape: (B,) int64
        draw: which elements come from the quantized prefix.
        dtype: of the result.

    Returns:
        the mixed rows  # shape: (B, *)
    """
    if calls.can_take(quantized, floating) and quantized.stride() == floating.stride() and dtype in calls.FLOATS:
        return calls.gather_mix(quantized, floating, index, draw, dtype)
    return mix(quantized[index], floating[index], draw).to(dtype)


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
