"""The grid search for a range as the reference implementations do it: every candidate, in float64."""

from __future__ import annotations

import numpy as np


def error(row, scale, zero, top, exponent):
    """Sum |x - x_hat|^p; ``zero`` is counted from the smallest code, 0, and ``top`` is the largest."""
    codes = np.clip(np.round(row / scale) + zero, 0, top)
    return (np.abs(row - (codes - zero) * scale) ** exponent).sum()


def grid(row, bits, steps, is_symmetric):
    """All candidates (scale, zero): 1-D if symmetric or of one sign, else 2-D."""
    top = 2**bits - 1
    lowest, highest = min(row.min(), 0.0), max(row.max(), 0.0)
    for step in range(1, steps + 1):
        if is_symmetric:
            yield 2 * max(-lowest, highest) / steps * step / top, 2 ** (bits - 1)
        elif lowest == 0:
            yield highest / steps * step / top, 0
        elif highest == 0:
            yield -lowest / steps * step / top, top
        else:
            scale = (highest - lowest) / steps * step / top
            for zero in range(top + 1):
                yield scale, zero


def best_on_grid(row, bits, steps=100, exponent=2.4, is_symmetric=False):
    """The least error, its scale and its zero point."""
    best = (np.inf, 0.0, 0)
    for scale, zero in grid(row, bits, steps, is_symmetric):
        candidate = error(row, scale, zero, 2**bits - 1, exponent)
        if candidate < best[0]:
            best = (candidate, scale, zero)
    return best


def minmax(row, bits, is_symmetric=False):
    """Scale and zero point that cover the row and 0."""
    top = 2**bits - 1
    lowest, highest = min(row.min(), 0.0), max(row.max(), 0.0)
    if is_symmetric:
        return 2 * max(-lowest, highest) / top, 2 ** (bits - 1)
    scale = (highest - lowest) / top
    return scale, round(-lowest / scale)
