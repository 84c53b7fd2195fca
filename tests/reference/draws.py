"""The random masks of ``fused/draws.py``, element by element in whole numbers."""

from __future__ import annotations

import numpy as np

WORD = 2**32


def scramble(x: int) -> int:
    x ^= x >> 16
    x = x * 0x7FEB352D % WORD
    x ^= x >> 15
    x = x * 0x846CA68B % WORD
    return x ^ x >> 16


def keep_mask(count: int, key: int, tweak: int, threshold: int) -> np.ndarray:
    mask = np.zeros(count, dtype=np.float32)
    for i in range(count):
        word = scramble((scramble(i // 4 ^ key) + tweak) % WORD)
        mask[i] = (word >> 8 * (i % 4) & 255) < threshold
    return mask
