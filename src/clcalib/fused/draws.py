"""Random masks by counter: element i of a mask is a function of the draw and of i alone, on every device.

A draw is two 32-bit numbers.  Four elements share a 32-bit word, word j being ``f(f(j ^ key) + tweak)`` with the
bijection f below (two multiplications between three xor-shifts: Wellons, "Prospecting for hash functions", constants
0x7feb352d and 0x846ca68b); byte k of the word, the lowest first, is below ``256 * probability`` where the mask is 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from clcalib.errors import ArgumentError


class Draw(NamedTuple):
    """Which mask: two 32-bit numbers, and the bytes (0 to 256) that count as 1; 256 keeps every element.

    On a GPU the two numbers may be tensors (), int32 with the same bits, whose values are not known yet.
    """

    key: int | Tensor
    tweak: int | Tensor
    threshold: int


ALL = Draw(0, 0, 256)
NONE = Draw(0, 0, 0)


def threshold_of(probability: float) -> int:
    """256 * probability, rounded; 0, 1/2 and 1 are exact.

    Raises:
        ArgumentError: it is not from 0 to 1.
    """
    if not 0.0 <= probability <= 1.0:
        raise ArgumentError("probability", "a number from 0 to 1", probability)
    return round(256 * probability)


def keep_mask(
    shape: Sequence[int],
    draw: Draw,
    device: torch.device | str = "cpu",
    *,
    memory_format: torch.memory_format = torch.contiguous_format,
) -> Tensor:
    """The mask of a draw as float32 zeros and ones; elements are counted in the order of memory.

    Args:
        shape: the shape of the mask.
        draw: which mask.
        device: where it lives.
        memory_format: the order in memory; give that of the tensor that the mask meets.

    Returns:
        the mask  # shape: shape
    """
    mask = torch.empty(tuple(shape), dtype=torch.float32, device=device, memory_format=memory_format)
    if draw.threshold in (0, 256):
        return mask.fill_(draw.threshold / 256)
    words = torch.arange((mask.numel() + 3) // 4, dtype=torch.int32, device=device)
    words = _scramble(_scramble(words ^ _word(draw.key)) + _word(draw.tweak))
    flat = mask.as_strided((mask.numel(),), (1,))
    flat.copy_(words.view(torch.uint8)[: mask.numel()]).lt_(float(draw.threshold))
    return mask


def words_on(draw: Draw, device: torch.device) -> tuple[Tensor, Tensor]:
    """Key and tweak as tensors (), int32, on a device, written there without waiting for it."""
    key, tweak = (
        word if isinstance(word, Tensor) else torch.full((), signed(word), dtype=torch.int32, device=device)
        for word in draw[:2]
    )
    return key, tweak


def _word(word: int | Tensor) -> int | Tensor:
    return word if isinstance(word, Tensor) else signed(word)


def _scramble(words: Tensor) -> Tensor:
    words = words ^ (words >> 16 & 0xFFFF)  # >> copies the sign, which the mask takes away
    words = words * signed(0x7FEB352D)
    words ^= words >> 15 & 0x1FFFF
    words *= signed(0x846CA68B)
    words ^= words >> 16 & 0xFFFF
    return words


def signed(word: int) -> int:
    """The 32-bit two's complement number with the bits of an unsigned one."""
    return word - (1 << 32) if word >= 1 << 31 else word
