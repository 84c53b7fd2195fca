"""Where the images of a worker's shards stand in its stores, and in which batches they are looked at.

The rows of the own shards lie one behind the other.  No batch crosses from one shard into the next, so that what is
computed of a shard is the same, bit for bit, whichever worker has it and whatever else that worker has.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from clcalib.capture.chain import Chain
from clcalib.team.messages import ALIGNMENT
from clcalib.team.team import Team


class Batch(NamedTuple):
    """Neighbouring images of one shard.

    Attributes:
        shard: its place among the worker's own, from 0.
        start, stop: the rows in the worker's stores.
        place: how many images the batches before it have; the place where its values go if nothing else is kept.
    """

    shard: int
    start: int
    stop: int
    place: int


@dataclasses.dataclass(frozen=True)
class Layout:
    """The images of all shards, and which of them are this worker's.

    Args:
        team: who has which shard.
        counts: of each shard of the team, how many images it has.

    Example:
        >>> layout = Layout.of(Team(shards=4), 10)
        >>> [tuple(batch) for batch in layout.batches(2, 6)]
        [(0, 0, 1, 0), (1, 2, 4, 1), (2, 5, 6, 3), (3, 7, 9, 4)]
    """

    team: Team
    counts: tuple[int, ...]

    @classmethod
    def of(cls, team: Team, count: int) -> Layout:
        """The layout of ``count`` images."""
        return cls(team, tuple(end - first for first, end in team.spans(count)))

    @classmethod
    def alone(cls, count: int) -> Layout:
        """The layout of images that one worker has as one shard."""
        return cls(Team(), (count,))

    @property
    def count(self) -> int:
        """The number of all images, those of other workers too."""
        return sum(self.counts)

    @property
    def own_count(self) -> int:
        """The number of this worker's images."""
        return sum(self.own_counts)

    @property
    def own_counts(self) -> tuple[int, ...]:
        """Of each of this worker's shards, how many images it has."""
        return tuple(self.counts[shard] for shard in self.team.own)

    @property
    def first(self) -> int:
        """The number, among all images, of this worker's first one."""
        return sum(self.counts[: self.team.own[0]])

    @functools.cached_property
    def starts(self) -> tuple[int, ...]:
        """Of each of this worker's shards, its first row in the worker's stores."""
        return tuple(sum(self.own_counts[:at]) for at in range(len(self.own_counts)))

    @property
    def shard_spans(self) -> list[tuple[int, int]]:
        """Of each of this worker's shards, its first row and the number of its rows."""
        return list(zip(self.starts, self.own_counts, strict=True))

    def limited(self, count: int) -> Layout:
        """The layout of the first ``count`` images, as many of each shard as it goes."""
        if count >= self.count:
            return self
        wanted = (end - first for first, end in self.team.spans(count))
        return Layout(self.team, tuple(min(pair) for pair in zip(wanted, self.counts, strict=True)))

    def batches(self, size: int, count: int | None = None) -> list[Batch]:
        """This worker's part of the first ``count`` images, or of all, in batches of ``size`` or less."""
        chosen, found, place = self if count is None else self.limited(count), list[Batch](), 0
        for shard, (first, images) in enumerate(zip(self.starts, chosen.own_counts, strict=True)):
            for start in range(first, first + images, size):
                stop = min(start + size, first + images)
                found.append(Batch(shard, start, stop, place))
                place += stop - start
        return found

    def shard_of(self, start: int) -> int:
        """The place among the worker's own shards of the one that has this row of its stores."""
        return max(at for at, first in enumerate(self.starts) if first <= start)

    def cut(self, images: Tensor, device: torch.device | None = None) -> Tensor:
        """Of all images (N, ...) this worker's, on the device; no copy where they are there."""
        own = images if self.team.workers == 1 else images[self.first : self.first + self.own_count]
        return own if device is None else own.to(device)

    def heads(self, images: Tensor, count: int, device: torch.device | None = None) -> tuple[Tensor, Layout]:
        """Of all images (N, ...) the first ``count``, as many of each shard as it goes: this worker's; their layout."""
        own, chosen = self.cut(images), self.limited(count)
        if self.team.shards == 1:
            own = own[:count]
        elif chosen is not self:
            pairs = zip(self.starts, chosen.own_counts, strict=True)
            own = torch.cat([own[start : start + size] for start, size in pairs])
        return own if device is None else own.to(device), chosen

    def total(self, values: Sequence[Sequence[float]]) -> list[float]:
        """Of numbers, a row for each own shard, the sums over all shards, in their order."""
        return self.team.total([torch.tensor(row, dtype=torch.float64) for row in values]).tolist()

    def gathered(self, own: Tensor) -> Tensor:
        """Rows of this worker's images (own_count, ...) -> those of all images (count, ...), on all workers."""
        if self.team.workers == 1:
            return own
        each = len(self.team.own)
        sizes = [sum(self.counts[first : first + each]) for first in range(0, len(self.counts), each)]
        return joined(self.team, own, sizes)

    def aligned(self, values: Tensor) -> Tensor:
        """Values that are computed with; of several shards, where they would lie otherwise on another worker, moved.

        Matrix products may add up in another order where a tensor begins between two multiples of ``ALIGNMENT``.
        """
        if self.team.shards == 1 or values.data_ptr() % ALIGNMENT == 0:
            return values
        return values.clone()


def device_of(chain: Chain) -> torch.device | None:
    """Where a chain computes; None where it has nothing that lies anywhere."""
    return next((tensor.device for tensor in chain.module.state_dict().values() if not tensor.is_meta), None)


def joined(team: Team, own: Tensor, sizes: Sequence[int]) -> Tensor:
    """The rows of all workers, in their order.

    Args:
        team: the workers.
        own: this worker's rows  # shape: (sizes[rank], ...)
        sizes: how many rows each worker has.
    """
    padded = own.new_zeros((max(sizes), *own.shape[1:]))
    padded[: len(own)] = own
    found = team.exchange.begin(padded)()
    return torch.cat([rows[:size] for rows, size in zip(found, sizes, strict=True)])
