"""Convolutions with stride and padding 1, position by position."""

from __future__ import annotations

import numpy as np


def weight_gradient(x: np.ndarray, gradient: np.ndarray) -> np.ndarray:
    """d[k, c, i, j] = sum over n, h, w of gradient[n, k, h, w] * x[n, c, h + i - 1, w + j - 1], zero outside.

    Args:
        x: (N, C, H, W)
        gradient: (N, K, H, W)

    Returns:
        (K, C, 3, 3)
    """
    height, width = x.shape[2:]
    padded = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)))
    found = np.zeros((gradient.shape[1], x.shape[1], 3, 3))
    for i in range(3):
        for j in range(3):
            seen = padded[:, :, i : i + height, j : j + width]
            found[:, :, i, j] = np.einsum("nkhw,nchw->kc", gradient, seen)
    return found
