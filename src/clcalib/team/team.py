"""The images of a run in a fixed number of shards, dealt to workers; the result depends on the shards alone.

Every worker has all parameters and the stores of its own shards.  What depends on all images (a gradient, a range, an
error) is computed shard by shard, exchanged, and added up in the order of the shards on every worker.  So each addition
has the same operands in the same order, whoever computed them, and the bits are the same for 1, 2 and 4 workers.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import operator
from collections.abc import Callable, Sequence
from typing import Protocol

import torch
from torch import Tensor

from clcalib.errors import ArgumentError

SHARDS = 4  # where a run is shared and no other number is said


class Exchange(Protocol):
    """How workers reach each other.  All of them call the same methods in the same order."""

    def begin(self, tensor: Tensor) -> Callable[[], list[Tensor]]:
        """Begin to exchange a tensor that has the same shape and type on all workers.

        Returns:
            what waits for the exchange and gives the tensors of all workers, by rank.

        Raises:
            WorkerLostError: another worker is gone, or cannot be reached.
        """

    def broadcast(self, data: bytes | None) -> bytes:
        """The bytes that worker 0 gives, on all workers; the others give None."""


@dataclasses.dataclass(frozen=True)
class Alone:
    """The exchange of a single worker."""

    def begin(self, tensor: Tensor) -> Callable[[], list[Tensor]]:
        """See ``Exchange``."""
        return lambda: [tensor]

    def broadcast(self, data: bytes | None) -> bytes:
        """See ``Exchange``."""
        assert data is not None
        return data


@dataclasses.dataclass(frozen=True)
class Team:
    """A worker's view of all of them.

    Args:
        shards: into how many parts the images are split; part of what the result depends on.
        workers: how many work on them; each has ``shards / workers`` neighbouring ones.
        rank: which of them this one is, from 0.
        exchange: how they reach each other.

    Raises:
        ArgumentError: the shards cannot be dealt evenly.

    Example:
        >>> [span for span in Team(shards=4).spans(10)]
        [(0, 2), (2, 5), (5, 7), (7, 10)]
    """

    shards: int = 1
    workers: int = 1
    rank: int = 0
    exchange: Exchange = dataclasses.field(default_factory=Alone)

    def __post_init__(self) -> None:
        if self.shards < 1:
            raise ArgumentError("shards", "at least 1", self.shards)
        if not 1 <= self.workers <= self.shards or self.shards % self.workers:
            raise ArgumentError(
                "workers", f"a divisor of the {self.shards} shards", self.workers, "choose another number of either"
            )
        if not 0 <= self.rank < self.workers:
            raise ArgumentError("rank", f"0 to {self.workers - 1}", self.rank)

    @property
    def own(self) -> range:
        """The numbers of this worker's shards."""
        each = self.shards // self.workers
        return range(self.rank * each, (self.rank + 1) * each)

    def spans(self, count: int) -> list[tuple[int, int]]:
        """By shard, the first of its images and the one behind its last, of ``count`` images."""
        ends = [count * number // self.shards for number in range(self.shards + 1)]
        return list(itertools.pairwise(ends))

    def own_span(self, count: int) -> tuple[int, int]:
        """The first image of this worker's shards and the one behind the last, of ``count`` images."""
        spans = self.spans(count)
        return spans[self.own[0]][0], spans[self.own[-1]][1]

    def gather(self, values: Sequence[Tensor]) -> list[Tensor]:
        """Of this worker's shards a tensor each, all of one shape and type; returns those of all shards, in order."""
        if self.workers == 1:
            return list(values)
        found = self.exchange.begin(torch.stack(list(values)))()
        return [value for worker in found for value in worker.unbind()]

    def by_worker(self, tensor: Tensor) -> list[Tensor]:
        """The tensors of all workers, all of one shape and type, in their order."""
        return self.exchange.begin(tensor)()

    def total(self, values: Sequence[Tensor]) -> Tensor:
        """The sum over all shards, added up in their order; ``values`` as for ``gather``."""
        return functools.reduce(operator.add, self.gather(values))
