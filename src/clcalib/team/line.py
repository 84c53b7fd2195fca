"""Workers in a line: each has neighbouring units of a network, and asks others for what theirs compute."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Mapping
from typing import Protocol

from torch import Tensor
from torch._C._distributed_c10d import PrefixStore, Store

from clcalib.errors import ArgumentError
from clcalib.team.group import ProcessGroup
from clcalib.team.messages import Message


class Links(Protocol):
    """How a worker reaches each other one.  Two workers always know which of them speaks."""

    def send(self, rank: int, content: Tensor) -> None:
        """Give bytes to a worker.

        Raises:
            WorkerLostError: it is gone, or cannot be reached.
        """

    def receive(self, rank: int) -> Tensor:
        """Wait for the bytes that a worker gives; see ``send``."""


class NoLinks:
    """Those of a worker that is alone."""

    def send(self, rank: int, content: Tensor) -> None:
        """There is nobody."""
        raise AssertionError(f"there is no worker {rank}")

    def receive(self, rank: int) -> Tensor:
        """There is nobody."""
        raise AssertionError(f"there is no worker {rank}")


class PairLinks:
    """A group of two processes for each pair of workers.

    Args:
        groups: by the rank of the other one.
        rank: of this worker.
    """

    def __init__(self, groups: Mapping[int, ProcessGroup], rank: int) -> None:
        self._groups, self._rank = groups, rank

    @classmethod
    def join(
        cls,
        store: Store,
        rank: int,
        workers: int,
        *,
        address: str | None = None,
        watch: Callable[[], None] = lambda: None,
    ) -> PairLinks:
        """Connect with all other workers; the arguments are those of ``ProcessGroup.join``.

        Raises:
            WorkerLostError: not all of them came.
        """
        groups = dict[int, ProcessGroup]()
        # All go through the pairs in one order, so that none waits for one that waits for it.
        for pair in itertools.combinations(range(workers), 2):
            if rank in pair:
                own = PrefixStore(f"pair-{pair[0]}-{pair[1]}", store)
                group = ProcessGroup.join(own, pair.index(rank), 2, address=address, watch=watch)
                groups[pair[1 - pair.index(rank)]] = group
        return cls(groups, rank)

    @property
    def sent_bytes(self) -> int:
        """What this worker has given to all others."""
        return sum(group.sent_bytes for group in self._groups.values())

    def send(self, rank: int, content: Tensor) -> None:
        """See ``Links``."""
        self._groups[rank].give(content, 0 if self._rank < rank else 1)

    def receive(self, rank: int) -> Tensor:
        """See ``Links``."""
        return self._groups[rank].take(0 if rank < self._rank else 1)


@dataclasses.dataclass(frozen=True)
class Line:
    """A worker's view of the line.

    Args:
        workers: how many there are; the first has the first units.
        rank: which of them this one is, from 0.
        links: how they reach each other.
    """

    workers: int = 1
    rank: int = 0
    links: Links = dataclasses.field(default_factory=NoLinks)

    def __post_init__(self) -> None:
        if self.workers < 1:
            raise ArgumentError("workers", "at least 1", self.workers)
        if not 0 <= self.rank < self.workers:
            raise ArgumentError("rank", f"0 to {self.workers - 1}", self.rank)

    @property
    def others(self) -> tuple[int, ...]:
        """The ranks of all others."""
        return tuple(rank for rank in range(self.workers) if rank != self.rank)

    def tell(self, rank: int, message: Message) -> None:
        """Send a message, to which no answer is expected."""
        self.links.send(rank, message.to_bytes())

    def hear(self, rank: int) -> Message:
        """Wait for the next message of a worker."""
        return Message.from_bytes(self.links.receive(rank))

    def ask(self, rank: int, message: Message) -> Message:
        """Send a message, and wait for the answer."""
        self.tell(rank, message)
        return self.hear(rank)
