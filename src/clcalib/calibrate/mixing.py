"""What a unit reads while it is optimised: the quantized prefix, the float prefix, or an element-wise mix of both."""

from __future__ import annotations

import torch
from torch import Tensor

from clcalib.quant.kernels import random_keep_mask


def mix(quantized: Tensor, floating: Tensor, quantized_probability: float, generator: torch.Generator) -> Tensor:
    """Take each element from ``quantized`` with the given probability, else from ``floating``.

    Args:
        quantized, floating: same shape; one is returned as it is at probability 1 or 0.
        quantized_probability: share of elements from the quantized prefix.
        generator: where the choice comes from.

    Source: QDrop (Wei et al., 2022), eq. 9, on the unit's input.
    """
    if quantized_probability >= 1:
        return quantized
    if quantized_probability <= 0:
        return floating
    keep = random_keep_mask(quantized.shape, quantized_probability, generator, quantized.device)
    return torch.lerp(floating, quantized, keep.to(quantized.dtype))
