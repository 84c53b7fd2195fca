"""The statistics of the study: spread over seeds, paired differences with intervals, correlations.  NumPy alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from clcalib.sweep.statistics import t_interval

RESAMPLES = 10_000
LEVEL = 0.95
FEW = 20  # below so many seeds the percentile bootstrap is too narrow, and the t interval stands beside it


def spread(values: Sequence[float]) -> dict[str, Any]:
    """Mean, standard deviation between seeds (None for a single one) and their number."""
    deviation = round(float(np.std(values, ddof=1)), 3) if len(values) > 1 else None
    return {"mean": round(float(np.mean(values)), 3), "deviation": deviation, "n": len(values)}


def bootstrap_interval(values: Sequence[float], seed: int = 0, resamples: int = RESAMPLES) -> tuple[float, float]:
    """Percentile interval of the mean, by drawing as many values with replacement, ``resamples`` times.

    Source: Efron 1979; the percentile method.
    """
    sample = np.asarray(values, dtype=np.float64)
    drawn = np.random.default_rng(seed).integers(len(sample), size=(resamples, len(sample)))
    low, high = np.quantile(sample[drawn].mean(1), [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def crossed_interval(values: np.ndarray, seed: int = 0, resamples: int = RESAMPLES) -> tuple[float, float]:
    """Percentile interval of the mean of a table (seeds, images) whose rows and columns are both drawn anew.

    Both are samples: an image that every seed gets wrong is one image, not one for each seed.

    Source: Owen 2007, "The pigeonhole bootstrap" (Annals of Applied Statistics 1(2)); it errs on the wide side.
    """
    table = np.asarray(values, dtype=np.float64)
    random = np.random.default_rng(seed)
    rows, columns = (random.multinomial(size, [1 / size] * size, resamples) / size for size in table.shape)
    means = np.einsum("rs,rs->r", rows, columns @ table.T)
    low, high = np.quantile(means, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def paired_difference(ours: Mapping[int, float], base: Mapping[int, float]) -> dict[str, Any] | None:
    """Ours less base, seed by seed, over the seeds that both have; None where there is none."""
    seeds = sorted(set(ours) & set(base))
    if not seeds:
        return None
    values = [ours[seed] - base[seed] for seed in seeds]
    result = {**spread(values), "seeds": seeds, "values": [round(value, 3) for value in values]}
    if len(values) > 1:
        result["bootstrap"] = rounded(bootstrap_interval(values))
        if len(values) < FEW:
            result["t_interval"] = rounded(t_interval(values))
    return result


def pearson(x: Sequence[float], y: Sequence[float]) -> float | None:
    """Correlation of the values; None where one side does not vary, or of fewer than three pairs."""
    if len(x) < 3 or np.ptp(x) == 0 or np.ptp(y) == 0:
        return None
    return float(np.corrcoef(x, y)[0, 1])


def spearman(x: Sequence[float], y: Sequence[float]) -> float | None:
    """Correlation of the ranks; equal values share the mean of theirs."""
    return pearson(ranks(x), ranks(y))


def ranks(values: Sequence[float]) -> list[float]:
    """The place of each value in order, from 1 on.

    Example:
        >>> ranks([10.0, 30.0, 10.0])
        [1.5, 3.0, 1.5]
    """
    _, group, counts = np.unique(np.asarray(values), return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return [float(rank) for rank in (last - (counts - 1) / 2)[group]]


def correlations(x: Sequence[float], y: Sequence[float]) -> dict[str, Any]:
    """Both correlations and the number of pairs."""
    both = {"pearson": pearson(x, y), "spearman": spearman(x, y)}
    return {**{name: None if value is None else round(value, 3) for name, value in both.items()}, "n": len(x)}


def rounded(interval: tuple[float, float]) -> list[float]:
    return [round(value, 3) for value in interval]
