"""Whether one run is better than another on the same images: what only one of both has right is what counts."""

from __future__ import annotations

import dataclasses
import math

import numpy as np

from clcalib.report.evidence import PredictionRecord

RESAMPLES = 10_000
_SEED = 0
_EDGES = (2.5, 97.5)  # per cent, of the middle 95 %


@dataclasses.dataclass(frozen=True)
class PairedDifference:
    """How a second run differs from a first one, image by image.

    Attributes:
        images: on how many.
        lost, won: images that only the first, and only the second has right.
        difference: in percentage points; above 0 the second is better.
        low, high: the interval that holds 95 % of the differences when images are drawn again.
        p_value: how likely a difference at least so large is where both are equally good (exact McNemar test).
    """

    images: int
    lost: int
    won: int
    difference: float
    low: float
    high: float
    p_value: float


def paired_difference(first: PredictionRecord | None, second: PredictionRecord | None) -> PairedDifference | None:
    """Compare two runs on the same images, or None where they are others, or the predictions were not kept.

    Right is the label; without labels, what the first run's float network names.
    """
    if first is None or second is None or first.digest != second.digest or not first.floating:
        return None
    if len(first.quantized) != len(second.quantized) or first.labels != second.labels:
        return None
    truth = np.array(first.floating if first.labels is None else first.labels)
    is_right, other_is_right = np.array(first.quantized) == truth, np.array(second.quantized) == truth
    return of_counts(int((is_right & ~other_is_right).sum()), int((~is_right & other_is_right).sum()), len(truth))


def of_counts(lost: int, won: int, images: int) -> PairedDifference:
    """The difference that counts of images make.

    The interval is that of the paired bootstrap.  Drawing images again draws how many of them are lost, won and
    neither, so that the multinomial distribution of the three gives what resampling the images would.

    Example:
        >>> found = of_counts(lost=12, won=3, images=1000)
        >>> found.difference, round(found.p_value, 4)
        (-0.9, 0.0352)

    Source: McNemar 1947; Efron and Tibshirani 1993, section 13.3, percentile interval.
    """
    shares = np.array([lost, won, images - lost - won]) / images
    draws = np.random.Generator(np.random.PCG64(_SEED)).multinomial(images, shares, size=RESAMPLES)
    low, high = np.percentile(100.0 * (draws[:, 1] - draws[:, 0]) / images, _EDGES)
    return PairedDifference(
        images, lost, won, 100.0 * (won - lost) / images, float(low), float(high), mcnemar(lost, won)
    )


def mcnemar(lost: int, won: int) -> float:
    """The exact two-sided p-value 2 P(X <= min(lost, won)), X binomial of n = lost + won and 1/2; at most 1.

    Example:
        >>> mcnemar(0, 5), mcnemar(4, 4)
        (0.0625, 1.0)
    """
    count, least = lost + won, min(lost, won)
    if 2 * least == count:
        return 1.0
    whole = math.lgamma(count + 1) - count * math.log(2.0)
    tail = math.fsum(math.exp(whole - math.lgamma(k + 1) - math.lgamma(count - k + 1)) for k in range(least + 1))
    return round(min(1.0, 2.0 * tail), 12)
