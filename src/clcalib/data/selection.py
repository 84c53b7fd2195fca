"""Which images of a source are taken: by a counter-based generator, so no state exists that could be disturbed.

Every image gets the key splitmix64(seed, index), and the images with the smallest keys are taken in the order of
their keys.  A smaller ``count`` therefore gives the beginning of a larger one, and the choice is the same on every
machine and with every version of every library.

Source: Steele, Lea and Flood, "Fast splittable pseudorandom number generators" (OOPSLA 2014), the mixing function.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from clcalib.errors import DataError

_GOLDEN_GAMMA = np.uint64(0x9E3779B97F4A7C15)
_FIRST_FACTOR = np.uint64(0xBF58476D1CE4E5B9)
_SECOND_FACTOR = np.uint64(0x94D049BB133111EB)


def choose(total: int, count: int | None, seed: int) -> tuple[int, ...]:
    """Return ``count`` different indices below ``total``; all of them, in their order, if ``count`` is None.

    Raises:
        DataError: ``count`` is not from 1 to ``total``, or ``seed`` is negative.

    Example:
        >>> choose(3, None, seed=0)
        (0, 1, 2)
        >>> choose(1000, 5, seed=0) == choose(1000, 50, seed=0)[:5]
        True
    """
    if count is None:
        return tuple(range(total))
    if not 1 <= count <= total:
        raise DataError("count", f"from 1 to {total}, the images that there are", count)
    order = np.argsort(_keys(total, seed), kind="stable")
    return tuple(int(index) for index in order[:count])


def choose_balanced(labels: Sequence[int], count: int, seed: int) -> tuple[int, ...]:
    """Return ``count`` indices with each class as often as the others, give or take one, mixed.

    The classes are visited in turn, a class that has run out is left out of the turn.

    Raises:
        DataError: as ``choose``.

    Example:
        >>> chosen = choose_balanced([0, 0, 0, 1, 1, 1], 4, seed=0)
        >>> sum(index < 3 for index in chosen)
        2
    """
    ranked = choose(len(labels), len(labels), seed)
    if not 1 <= count <= len(labels):
        raise DataError("count", f"from 1 to {len(labels)}, the images that there are", count)
    seen: dict[int, int] = {}
    turns = []
    for position, index in enumerate(ranked):
        turn = seen.get(labels[index], 0)
        seen[labels[index]] = turn + 1
        turns.append((turn, position, index))
    chosen = sorted(turns)[:count]
    return tuple(index for _, _, index in sorted(chosen, key=lambda entry: entry[1]))


def uniforms(count: int, seed: int, *counters: int) -> NDArray[np.float64]:
    """Return ``count`` numbers, uniform from 0 to below 1, fixed by the seed and the counters; (count,) float64.

    Number i does not depend on ``count``.

    Raises:
        DataError: ``seed`` is negative.
    """
    _check_seed(seed)
    start = _mix(np.array([seed], dtype=np.uint64))
    for counter in counters:
        start = _mix(start + np.array([counter + 1], dtype=np.uint64) * _GOLDEN_GAMMA)
    keys = _mix(start + np.arange(1, count + 1, dtype=np.uint64) * _GOLDEN_GAMMA)
    return (keys >> np.uint64(11)).astype(np.float64) * 2.0**-53


def _check_seed(seed: int) -> None:
    if seed < 0 or seed >= 2**64:
        raise DataError("seed", "a whole number from 0 to 2**64 - 1", seed)


def _keys(total: int, seed: int) -> NDArray[np.uint64]:  # (total,)
    _check_seed(seed)
    start = _mix(np.array([seed], dtype=np.uint64))
    return _mix(start + np.arange(1, total + 1, dtype=np.uint64) * _GOLDEN_GAMMA)


def _mix(value: NDArray[np.uint64]) -> NDArray[np.uint64]:  # arrays wrap around, modulo 2**64
    value = (value ^ (value >> np.uint64(30))) * _FIRST_FACTOR
    value = (value ^ (value >> np.uint64(27))) * _SECOND_FACTOR
    return value ^ (value >> np.uint64(31))
