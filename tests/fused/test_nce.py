"""InfoNCE on cosines in one pass: the plain composition, the slow reference, and what it refuses."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from tests.reference import contrastive as reference
from torch import Tensor
from torch.nn import functional as F

from clcalib.errors import ArgumentError
from clcalib.fused import calls, nce
from clcalib.objectives.batch import Need, UnitBatch
from clcalib.objectives.contrastive import Contrastive
from clcalib.objectives.keys import KeySet, build_keys, unit_vectors

pytestmark = pytest.mark.skipif(not calls.is_available(), reason="the compiled kernels cannot be built here")
SHAPES = [(1, 2, 1), (16, 200, 10), (16, 64, 64), (32, 1024, 64), (5, 333, 100), (8, 65, 17)]


def make(queries: int, keys: int, width: int) -> tuple[Tensor, KeySet, Tensor]:
    generator = torch.Generator().manual_seed(queries + keys + width)
    values = torch.rand(keys, width, generator=generator)
    positive = torch.randint(keys, (queries,), generator=generator)
    near = values[positive] + 0.3 * torch.randn(queries, width, generator=generator)
    return near, build_keys(values, torch.zeros(keys, dtype=torch.int64), torch.arange(keys)), positive


def plain(queries: Tensor, keys: KeySet, positive: Tensor, temperature: float) -> Tensor:
    return F.cross_entropy(unit_vectors(queries, keys.least_norm) @ keys.directions.T / temperature, positive)


def both(function, queries: Tensor, *rest) -> tuple[Tensor, Tensor]:
    queries = queries.clone().requires_grad_()
    value = function(queries, *rest)
    return value.detach(), torch.autograd.grad(3.0 * value, queries)[0]


def fast(queries: Tensor, keys: KeySet, positive: Tensor, temperature: float) -> Tensor:
    assert nce.can_take(queries, keys.directions, positive)
    return nce.cosine_info_nce(queries, keys.columns, positive, keys.least, temperature)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("temperature", [0.05, 0.5, 2.0])
def test_it_is_the_plain_composition(shape: tuple[int, int, int], temperature: float) -> None:
    arguments = *make(*shape), temperature
    (value, gradient), (expected, slope) = both(fast, *arguments), both(plain, *arguments)
    torch.testing.assert_close(value, expected, rtol=1e-6, atol=2e-6)  # of scores of up to 1 / 0.05
    torch.testing.assert_close(gradient, slope, rtol=1e-5, atol=1e-5 * (1 + float(slope.abs().max())))


@pytest.mark.parametrize("shape", SHAPES[1:4], ids=str)
def test_it_is_the_slow_reference_and_its_slope(shape: tuple[int, int, int]) -> None:
    queries, keys, positive = make(*shape)

    def slow(queries: np.ndarray) -> float:
        rows = [np.asarray(matrix, dtype=np.float64) for matrix in (queries, keys.values)]
        scores = np.array([[q @ k / math.sqrt(q @ q) / math.sqrt(k @ k) / 0.5 for k in rows[1]] for q in rows[0]])
        return float(reference.info_nce(scores, positive.tolist(), np.zeros(scores.shape, dtype=bool)))

    value, gradient = both(fast, queries, keys, positive, 0.5)
    assert float(value) == pytest.approx(slow(queries.numpy()), rel=1e-5)
    moved = queries.double().numpy().copy()
    moved[0, 1] += 1e-4
    up = slow(moved)
    moved[0, 1] -= 2e-4
    assert float(gradient[0, 1]) == pytest.approx(3.0 * (up - slow(moved)) / 2e-4, rel=1e-3, abs=1e-6)


def test_a_query_without_a_direction_is_divided_by_the_least_length() -> None:
    queries, keys, positive = make(16, 64, 8)
    queries[0], queries[1] = 0.0, 1e-9
    (value, gradient), (expected, slope) = (
        both(fast, queries, keys, positive, 0.5),
        both(plain, queries, keys, positive, 0.5),
    )
    torch.testing.assert_close(value, expected, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(gradient, slope, rtol=1e-5, atol=1e-5 * float(slope.abs().max()))


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_what_is_not_finite_is_not_finite_in_the_loss_and_in_its_own_gradient(bad: float) -> None:
    queries, keys, positive = make(4, 64, 8)
    queries[2, 3] = bad
    value, gradient = both(fast, queries, keys, positive, 0.5)
    assert value.isnan()
    assert gradient.isnan().any(1).tolist() == [False, False, True, False]


def test_a_positive_that_is_no_key_is_refused() -> None:
    queries, keys, _ = make(4, 64, 8)
    with pytest.raises(ArgumentError, match=r"positive: expected keys from 0 to 63, got \[0, 64, 1, 2\]"):
        fast(queries, keys, torch.tensor([0, 64, 1, 2]), 0.5)


def test_what_does_not_fit_takes_the_plain_path() -> None:
    queries, keys, positive = make(4, 64, 8)
    assert nce.can_take(queries, keys.directions, positive)
    assert not nce.can_take(queries[:, :7].contiguous(), keys.directions, positive)
    assert not nce.can_take(queries, keys.directions, positive[:3])
    assert not nce.can_take(queries, keys.directions, positive.to(torch.int32))
    assert not nce.can_take(queries.double(), keys.directions.double(), positive)
    assert not nce.can_take(queries.t().contiguous().t(), keys.directions, positive)
    assert not nce.can_take(torch.zeros(4, 512), torch.zeros(1024, 512), positive)  # larger than the cache


def test_the_number_of_threads_changes_no_bit() -> None:
    arguments, before, found = (*make(32, 1024, 64), 0.5), torch.get_num_threads(), []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        found.append(both(fast, *arguments))
    torch.set_num_threads(before)
    assert all(torch.equal(value, found[0][0]) and torch.equal(slope, found[0][1]) for value, slope in found)


def test_the_term_takes_it_where_nothing_is_masked(monkeypatch: pytest.MonkeyPatch) -> None:
    queries, keys, positive = make(16, 64, 8)
    taken, function = [], nce.cosine_info_nce
    monkeypatch.setattr(nce, "cosine_info_nce", lambda *arguments: (taken.append(1), function(*arguments))[1])

    def term(**settings) -> Tensor:
        batch = UnitBatch(
            output=queries, target=queries, reads={Need.FEATURES: queries}, keys={Need.FEATURES: keys},
            sample_index=positive,
        )  # fmt: skip
        return Contrastive(**settings)(batch)

    torch.testing.assert_close(term(), plain(queries, keys, positive, 0.5), rtol=1e-6, atol=1e-6)
    assert taken == [1]
    term(false_negatives="same_prediction"), term(loss="sigmoid_nce"), term(keys=8)
    assert taken == [1]
