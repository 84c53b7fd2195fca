from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from clcalib.data.selection import choose, choose_balanced
from clcalib.errors import DataError


def reference_keys(total: int, seed: int) -> list[int]:
    """Splitmix64 in plain Python integers."""
    mask = 2**64 - 1

    def mix(value: int) -> int:
        value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & mask
        value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & mask
        return value ^ (value >> 31)

    return [mix((mix(seed) + (index + 1) * 0x9E3779B97F4A7C15) & mask) for index in range(total)]


@given(total=st.integers(1, 200), share=st.floats(0, 1), seed=st.integers(0, 2**64 - 1))
def test_choice_is_the_smallest_keys_in_their_order(total: int, share: float, seed: int) -> None:
    count = max(1, int(total * share))
    keys = reference_keys(total, seed)
    assert list(choose(total, count, seed)) == sorted(range(total), key=keys.__getitem__)[:count]


@given(total=st.integers(1, 200), seed=st.integers(0, 1000))
def test_a_choice_has_no_image_twice_and_begins_every_larger_one(total: int, seed: int) -> None:
    everything = choose(total, total, seed)
    assert sorted(everything) == list(range(total))
    assert choose(total, (total + 1) // 2, seed) == everything[: (total + 1) // 2]


def test_the_choice_is_fixed_for_all_time() -> None:
    assert choose(50_000, 4, seed=0) == (34952, 30320, 10062, 9539)
    assert choose(10, None, seed=3) == tuple(range(10))


def test_seeds_differ_and_the_choice_is_spread_evenly() -> None:
    first, second = choose(10_000, 2000, 0), choose(10_000, 2000, 1)
    assert 300 < len(set(first) & set(second)) < 500  # 400 expected
    counts = np.bincount(np.array(first) // 1000, minlength=10)
    assert counts.min() > 150  # 200 expected
    assert counts.max() < 250


def test_the_random_states_of_the_caller_are_untouched() -> None:
    before, numpy_before = torch.get_rng_state(), np.random.get_state()[1].copy()  # type: ignore[index]
    choose(1000, 10, 0)
    choose_balanced([0, 1] * 50, 10, 0)
    assert torch.equal(torch.get_rng_state(), before)
    assert np.array_equal(np.random.get_state()[1], numpy_before)  # type: ignore[index]


@pytest.mark.parametrize("count", [0, -1, 11])
def test_count_must_be_within_the_source(count: int) -> None:
    with pytest.raises(DataError, match=f"count: expected from 1 to 10.*got {count}"):
        choose(10, count, 0)
    with pytest.raises(DataError, match=f"count: expected from 1 to 10.*got {count}"):
        choose_balanced([0] * 10, count, 0)


def test_seed_must_be_a_counter() -> None:
    with pytest.raises(DataError, match="seed: expected"):
        choose(10, 5, -1)


@given(labels=st.lists(st.integers(0, 3), min_size=1, max_size=60), share=st.floats(0, 1), seed=st.integers(0, 99))
def test_balanced_choice_takes_classes_in_turn(labels: list[int], share: float, seed: int) -> None:
    count = max(1, int(len(labels) * share))
    chosen = choose_balanced(labels, count, seed)
    assert len(set(chosen)) == count
    taken, there = Counter(labels[index] for index in chosen), Counter(labels)
    most = max(taken.values())
    assert all(taken[label] in {most, most - 1} or taken[label] == there[label] for label in there)
