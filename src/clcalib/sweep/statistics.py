"""Mean, spread and Student's interval of a few values.  NumPy alone."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

# Student's t at 0.975, by degrees of freedom from 1 on.
T_QUANTILES = (
    *(12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131),
    *(2.120, 2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042),
)


def mean(values: Sequence[float]) -> float:
    """The mean.

    Example:
        >>> mean([1.0, 2.0])
        1.5
    """
    return float(np.mean(values))


def deviation(values: Sequence[float]) -> float | None:
    """The standard deviation of a sample; None of a single value.

    Example:
        >>> deviation([1.0, 2.0, 3.0])
        1.0
    """
    return float(np.std(values, ddof=1)) if len(values) > 1 else None


def t_interval(values: Sequence[float]) -> tuple[float, float]:
    """mean +- t s / sqrt(n), at 95 %: right if the values are normal.

    Args:
        values: two at least.
    """
    count, middle = len(values), mean(values)
    freedom = min(count - 1, len(T_QUANTILES))  # beyond the table, a little too wide
    half = T_QUANTILES[freedom - 1] * float(np.std(values, ddof=1)) / math.sqrt(count)
    return middle - half, middle + half
