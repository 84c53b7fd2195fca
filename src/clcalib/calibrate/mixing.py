"""What a unit reads while it is optimised: the quantized prefix, the float prefix, or an element-wise mix of both."""

from __future__ import annotations

import torch
from torch import Tensor

from clcalib.quant.kernels import random_keep_mask


def mix(quantized: Tensor, floating: Tensor, quantized_probability: float, generator: torch.Generator) -> Tensor:
    """Take each element from ``quantized`` with the given probability, else from ``floating``.

    Args:
        quantized: the tensor behind the quantized prefix, returned as it is at probability 1.
        floating: the same behind the float prefix, returned as it is at probability 0.
        quantized_probability: share of elements from the quantized prefix.
        generator: where the choice comes from.

    Source: QDrop (Wei et al., 2022), eq. 9, on the unit's input.
    """
    if quantized_probability >= 1:
        return quantized
    if quantized_probability <= 0:
        return floating
    return torch.lerp(floating, quantized, keep_mask_like(quantized, quantized_probability, generator))


def keep_mask_like(tensor: Tensor, probability: float, generator: torch.Generator) -> Tensor:
    """``random_keep_mask`` with the shape, place and memory order of a tensor."""
    is_channels_last = tensor.ndim == 4 and tensor.is_contiguous(memory_format=torch.channels_last)
    order = torch.channels_last if is_channels_last and not tensor.is_contiguous() else torch.contiguous_format
    mask = random_keep_mask(tensor.shape, probability, generator, tensor.device, memory_format=order)
    return mask.to(tensor.dtype)
