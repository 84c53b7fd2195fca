"""Random streams by counter: a step's numbers depend on (seed, unit, phase, step) and on nothing that ran before."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator

import torch
from torch import Tensor

from clcalib.fused.draws import ALL, Draw, threshold_of


def counter_hash(*counters: int) -> int:
    """64 bits that are fixed by the counters."""
    text = ",".join(str(number) for number in counters)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def stream(seed: int, *counters: int, device: torch.device | str = "cpu") -> torch.Generator:
    """Return a generator whose numbers are fixed by the seed and the counters.

    Example:
        >>> a, b = (torch.rand(2, generator=stream(0, 3, 1)) for _ in range(2))
        >>> bool((a == b).all())
        True
    """
    return torch.Generator(device=device).manual_seed(counter_hash(seed, *counters) >> 1)


class StepStream:
    """The random numbers of the current step, shared by everything random inside one unit.

    Args:
        seed, unit, phase: fix all of its numbers.
        shards: where there are several, each has numbers of its own, which depend on no other.
    """

    def __init__(self, seed: int, unit: int, phase: int, shards: int = 1) -> None:
        seeds = [seed] if shards == 1 else [counter_hash(seed, shards, shard) for shard in range(shards)]
        self._counters_of = [(own, unit, phase) for own in seeds]
        self._counters = self._counters_of[0]
        self._step, self._draws = 0, 0
        self._keeps_all = False
        self._words: Tensor | None = None

    @property
    def step(self) -> int:
        """The step that it is."""
        return self._step

    def advance(self, step: int, shard: int = 0) -> None:
        """Start the numbers of ``step``, those of a shard."""
        self._step, self._draws = step, 0
        self._counters = self._counters_of[shard]

    def batch(self, count: int, size: int, ahead: int = 0, shard: int | None = None) -> Tensor:
        """Which images the step (or a later one) looks at: ``size`` of ``count``, none twice; (size,) int64.

        Args:
            count: of the images of the shard.
            size: how many.
            ahead: of how many steps later.
            shard: of which shard; None is the present one.
        """
        counters = self._counters if shard is None else self._counters_of[shard]
        return torch.randperm(count, generator=stream(*counters, self._step + ahead))[:size]

    @contextlib.contextmanager
    def undropped(self) -> Iterator[None]:
        """Inside, every mask keeps everything, and none of the step's numbers is used up."""
        self._keeps_all = True
        try:
            yield
        finally:
            self._keeps_all = False

    @contextlib.contextmanager
    def reading(self, words: Tensor) -> Iterator[None]:
        """Inside, the step's masks are those whose key and tweak stand in the rows of a tensor (draws, 2) int32."""
        self._words = words
        try:
            yield
        finally:
            self._words = None

    def numbers(self, count: int) -> list[int]:
        """Of the step's first ``count`` masks, the 64 bits: the key, and above it the tweak."""
        return [self._number(draw) for draw in range(1, count + 1)]

    def seed(self) -> int:
        """64 bits for what else is random in the step."""
        return self._number(0)

    def draw(self, probability: float) -> Draw:
        """The next mask of the step, of ones with the given probability."""
        if probability >= 1 or self._keeps_all:
            return ALL
        self._draws += 1
        if self._words is not None:
            key, tweak = self._words[self._draws - 1].unbind()
            return Draw(key, tweak, threshold_of(probability))
        number = self._number(self._draws)
        return Draw(number & 0xFFFFFFFF, number >> 32, threshold_of(probability))

    def _number(self, draw: int) -> int:
        return counter_hash(*self._counters, self._step, draw)
