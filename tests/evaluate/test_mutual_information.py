"""No estimate may exceed the mutual information of correlated Gaussians, which is known in closed form."""

from __future__ import annotations

import math

import pytest
import torch

from clcalib.evaluate.mutual_information import binary_nce_bound, feature_bound, info_nce_bound

DIMENSIONS = 4


def pairs(correlation, count, seed):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(count, DIMENSIONS, dtype=torch.float64, generator=generator)
    noise = torch.randn(count, DIMENSIONS, dtype=torch.float64, generator=generator)
    return x, correlation * x + math.sqrt(1 - correlation**2) * noise


def true_information(correlation):
    return -0.5 * DIMENSIONS * math.log(1 - correlation**2)


def log_density_ratio(x, y, correlation):  # (K, K): log p(x_i, y_j) / p(x_i) p(y_j)
    squared = 1 - correlation**2
    x, y = x[:, None], y[None]
    cross = -(correlation**2) * (x**2 + y**2) / (2 * squared) + correlation * x * y / squared
    return cross.sum(-1) - 0.5 * DIMENSIONS * math.log(squared)


def estimates(function, correlation, count=128, repeats=30):
    return torch.tensor([function(*pairs(correlation, count, seed)) for seed in range(repeats)])


def upper_end(values):  # of a one-sided 99.9 % interval for the mean, to be below the truth
    return float(values.mean() - 3.1 * values.std() / math.sqrt(len(values)))


@pytest.mark.parametrize("correlation", [0.0, 0.3, 0.6, 0.9])
def test_optimal_critic_never_exceeds_the_truth(correlation):
    for bound, offset in ((info_nce_bound, 0.0), (binary_nce_bound, math.log(127))):
        values = estimates(lambda x, y, b=bound, o=offset: b(log_density_ratio(x, y, correlation) - o), correlation)
        assert upper_end(values) <= true_information(correlation)


@pytest.mark.parametrize("bound", [info_nce_bound, binary_nce_bound])
@pytest.mark.parametrize("scale", [-2.0, 0.5, 3.0])
def test_any_critic_is_a_bound(bound, scale):
    values = estimates(lambda x, y: bound(scale * (x @ y.T)), 0.6)
    assert upper_end(values) <= true_information(0.6)


def test_averaging_the_negatives_would_break_the_bound():
    """The binary bound with a mean instead of a sum over the negatives says more than there is."""
    x, y = pairs(0.0, 128, 0)
    logits = torch.full((128, 128), 20.0, dtype=torch.float64)
    wrong = math.log(127) - float(torch.nn.functional.softplus(-logits.diagonal()).mean())
    assert wrong > true_information(0.0)
    assert binary_nce_bound(logits) < true_information(0.0)
    assert len(x) == len(y)


def test_bound_rises_with_the_correlation():
    for bound, offset in ((info_nce_bound, 0.0), (binary_nce_bound, math.log(127))):
        means = [
            float(estimates(lambda x, y, b=bound, o=offset, c=c: b(log_density_ratio(x, y, c) - o), c).mean())
            for c in (0.0, 0.3, 0.6, 0.9)
        ]
        assert means == sorted(means)
        assert means[-1] > 1.0


def test_info_nce_never_shows_more_than_log_count():
    assert info_nce_bound(1000 * torch.eye(16, dtype=torch.float64)) == pytest.approx(math.log(16))
    assert info_nce_bound(torch.zeros(16, 16)) == pytest.approx(0.0, abs=1e-6)


def test_feature_bound_is_highest_for_equal_features():
    x = torch.randn(32, 8, generator=torch.Generator().manual_seed(0))
    noisy = x + torch.randn(32, 8, generator=torch.Generator().manual_seed(1))
    assert feature_bound(x, x) > feature_bound(noisy, x) > feature_bound(noisy.flip(0), x)
