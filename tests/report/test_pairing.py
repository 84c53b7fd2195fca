"""Paired differences: counts by hand, p-values and intervals against slow references."""

from __future__ import annotations

import math
import random

import pytest
from scipy.stats import binomtest
from tests.report.folders import evidence

from clcalib.report.evidence import PredictionRecord
from clcalib.report.pairing import mcnemar, of_counts, paired_difference


@pytest.mark.parametrize(("lost", "won"), [(0, 0), (0, 1), (5, 0), (3, 9), (40, 22), (700, 650), (20_000, 19_800)])
def test_the_p_value_is_that_of_the_binomial_test(lost, won):
    expected = 1.0 if lost + won == 0 else binomtest(lost, lost + won, 0.5).pvalue
    assert mcnemar(lost, won) == pytest.approx(expected, rel=1e-6, abs=1e-12)
    assert mcnemar(lost, won) == mcnemar(won, lost)


def test_the_interval_is_that_of_resampled_images():
    lost, won, count = 30, 12, 400
    outcomes = [-1] * lost + [1] * won + [0] * (count - lost - won)
    chance = random.Random(1)
    drawn = sorted(100 * sum(chance.choices(outcomes, k=count)) / count for _ in range(4000))
    found = of_counts(lost, won, count)
    assert found.difference == -4.5
    assert found.low == pytest.approx(drawn[100], abs=0.3)
    assert found.high == pytest.approx(drawn[3900], abs=0.3)
    assert found.low < found.difference < found.high
    assert found == of_counts(lost, won, count)


def test_images_are_paired_by_their_labels():
    def predictions(own, labels=(0, 1, 2, 0), **changes):
        values = {"digest": "d", "labels": labels, "floating": (0, 1, 2, 1), "quantized": own}
        return PredictionRecord(**{**values, **changes})

    found = paired_difference(predictions((0, 1, 0, 0)), predictions((0, 2, 2, 1)))
    assert (found.lost, found.won, found.images, found.difference) == (2, 1, 4, -25.0)
    without = paired_difference(predictions((0, 1, 0, 0), labels=None), predictions((0, 2, 2, 1), labels=None))
    assert (without.lost, without.won) == (1, 2)  # right is what the float network names


@pytest.mark.parametrize("change", [{"digest": "other"}, {"labels": (1, 1, 1, 1)}, {"labels": None}])
def test_other_images_are_not_paired(change):
    first = evidence().predictions
    assert paired_difference(first, first) is not None
    assert paired_difference(first, first.model_copy(update=change)) is None
    assert paired_difference(first, None) is None
    assert math.isclose(paired_difference(first, first).difference, 0.0)
