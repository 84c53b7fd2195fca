"""Large rows of values as histograms, so that a range rule costs the same for any number of images.

A row of up to ``EXACT_VALUES`` values stays as it is.  A longer one becomes its counts in ``BINS`` equal bins, one of
which has its middle at 0, so that the zeros of a post-ReLU tensor stay zeros.  Every value counts; no sample is drawn.
"""

from __future__ import annotations

import torch
from torch import Tensor

EXACT_VALUES = 1 << 16
BINS = 1 << 14
_CHUNK_VALUES = 1 << 22  # values at once, which bounds the memory


def condense(values: Tensor) -> tuple[Tensor, Tensor | None]:
    """Values, and how often each occurs.

    Args:
        values: float32, finite  # shape: (C, N)

    Returns:
        ``values`` and None (each occurs once), or the middles of the bins in rising order and the counts, both float32
        # shape: (C, N) or (C, BINS + 2), (C, BINS + 2)
    """
    if values.shape[1] <= EXACT_VALUES:
        return values, None
    rows = [_histogram(row) for row in values]
    return torch.stack([middles for middles, _ in rows]), torch.stack([counts for _, counts in rows])


def _histogram(row: Tensor) -> tuple[Tensor, Tensor]:  # (N,) -> (BINS + 2,), (BINS + 2,)
    lower, upper = (float(value) for value in torch.aminmax(row))
    lower, upper = min(lower, 0.0), max(upper, 0.0)
    width = max(upper / BINS - lower / BINS, torch.finfo(torch.float32).tiny)
    below = round(-lower / width)  # bins below the one of 0
    counts = torch.zeros(BINS + 2, dtype=torch.int64, device=row.device)
    for start in range(0, len(row), _CHUNK_VALUES):
        bins = row[start : start + _CHUNK_VALUES].div(width).round_().to(torch.int32).add_(below).clamp_(0, BINS + 1)
        counts += torch.bincount(bins, minlength=BINS + 2)
    middles = (torch.arange(BINS + 2, device=row.device) - below).to(torch.float32) * width
    return middles.clamp(lower, upper), counts.to(torch.float32)
