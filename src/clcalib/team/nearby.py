"""Workers of one machine that leave each other tensors in shared memory.

A library that exchanges tensors does so in threads of its own.  Where every core computes, such a thread waits for its
turn, for milliseconds, and whoever needs the tensors waits with it.  Here a worker copies its tensor into memory that
all of them see, and looks for those of the others when it needs them, so that no thread has to be woken.

The memory has no name in any file system, so that nothing is left of it, whatever becomes of the workers.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import platform
import sys
import time
import weakref
from collections.abc import Callable

import torch
from torch import Tensor
from torch._C._distributed_c10d import Store

from clcalib.errors import WorkerLostError
from clcalib.team.group import PATIENCE, ProcessGroup, first_line
from clcalib.team.member import Seat
from clcalib.team.place import own_address
from clcalib.team.team import Exchange

SLOT = 1 << 19  # bytes; of units whose rows are larger the exchange hides behind what they compute
SLOTS = 8  # of each worker: as many tensors as can be under way
_LINE = 64  # bytes that processors hand over at once; no two workers write into the same
_WAKE = 5e-3  # seconds of looking before the first pause; a processor that was at rest begins slowly
_PAUSE = 1e-4  # seconds between two looks
_POSTED, _READ = 0, 1  # the counters of a worker
_NAME = "clcalib-memory"


def exchange_of(seat: Seat, store: Store) -> Exchange:
    """Connect a worker with the others that have met in a store; arguments and errors as for ``ProcessGroup.join``."""
    group = ProcessGroup.join(store, seat.rank, seat.workers, address=own_address(seat.host, seat.port))
    return joined(group, store, seat.rank, seat.workers) if seat.is_near else group


def joined(group: ProcessGroup, store: Store, rank: int, workers: int) -> Exchange:
    """The exchange through shared memory, for what fits into it, or the group where there is none.

    Args:
        group: of the same workers, for what does not fit.
        store: where all meet; keys of their own are put into it.
        rank: of this worker.
        workers: their number, all on this machine.

    Returns:
        the same kind of exchange on all workers.

    Raises:
        WorkerLostError: not all of them came, within the time that the store waits.
    """
    try:
        handle = _made(store, workers) if rank == 0 else _opened(store)
        if handle is not None:
            _hold(handle, rank)
        store.set(f"{_NAME}/{rank}", "" if handle is None else "1")
        are_there = [bool(store.get(f"{_NAME}/{each}")) for each in range(workers)]
    except RuntimeError as error:
        raise WorkerLostError(f"the {workers} workers do not meet in the store: {first_line(error)}") from error
    if handle is not None and all(are_there):
        return NearbyExchange(group, handle, rank, workers)
    if handle is not None:
        os.close(handle)
    return group


def is_supported() -> bool:
    """Whether memory without a name is there, and processors that show stores to each other in their order."""
    return sys.platform == "linux" and platform.machine().lower() in ("x86_64", "amd64")


class NearbyExchange:
    """An exchange through shared memory; what is larger than a slot, or one too many, goes through a group.

    Every worker has a page with two counters, of what it has posted and of what it has read, and ``SLOTS`` slots that
    it alone writes into.  A tensor is posted by its bytes first and the counter then; a slot is written into again
    when all others have read it.  As all workers call the same methods in the same order, all take the same way.  Who
    waits for a slot has itself read what was in it, and has posted all that a late one needs to come as far; so no two
    wait for each other.

    Args:
        group: for the rest.
        handle: of memory of ``bytes_for(workers)`` bytes, zeros at first, in which each worker holds the byte of its
            rank; it is this object's from here on.
        rank: of this worker.
        workers: their number.
    """

    def __init__(self, group: ProcessGroup, handle: int, rank: int, workers: int) -> None:
        self._group, self._handle, self._rank = group, handle, rank
        self._others = [each for each in range(workers) if each != rank]
        memory = mmap.mmap(handle, bytes_for(workers))
        self._bytes = torch.frombuffer(memory, dtype=torch.uint8)
        self._counters = memoryview(memory)[: workers * mmap.PAGESIZE].cast("Q")
        self._slots = workers * mmap.PAGESIZE
        self._begun = self._read = 0
        self._posted_messages = self._posted_bytes = 0
        weakref.finalize(self, os.close, handle)

    @property
    def messages(self) -> int:
        """How many tensors this worker has given to the others."""
        return self._group.messages + self._posted_messages

    @property
    def sent_bytes(self) -> int:
        """Their bytes, each counted once, whatever the number of workers that got it."""
        return self._group.sent_bytes + self._posted_bytes

    def begin(self, tensor: Tensor) -> Callable[[], list[Tensor]]:
        """See ``Exchange``; what is begun must be waited for in the same order."""
        if tensor.device.type != "cpu" or tensor.nbytes > SLOT or self._begun - self._read >= SLOTS:
            return self._group.begin(tensor)
        own, number = tensor.detach().contiguous(), self._begun
        self._begun += 1
        self._posted_messages, self._posted_bytes = self._posted_messages + 1, self._posted_bytes + own.nbytes
        for other in self._others:  # who is late has the slot's last tensor still to read
            self._until(other, _READ, number + 1 - SLOTS)
        self._slot(self._rank, number, own.nbytes).copy_(own.view(-1).view(torch.uint8))
        self._counters[_place(self._rank, _POSTED)] = number + 1

        def wait() -> list[Tensor]:
            assert number == self._read, "waited for out of turn"
            for other in self._others:
                self._until(other, _POSTED, number + 1)
            ranks = range(len(self._others) + 1)
            found = [self._slot(rank, number, own.nbytes).clone().view(own.dtype).view(own.shape) for rank in ranks]
            self._read += 1
            self._counters[_place(self._rank, _READ)] = self._read
            return found

        return wait

    def broadcast(self, data: bytes | None) -> bytes:
        """See ``Exchange``."""
        return self._group.broadcast(data)

    def _slot(self, rank: int, number: int, size: int) -> Tensor:
        start = self._slots + (rank * SLOTS + number % SLOTS) * SLOT
        return self._bytes[start : start + size]

    def _until(self, rank: int, counter: int, number: int) -> None:
        """Wait until a worker's counter has come this far, for as long as the worker is there.

        Raises:
            WorkerLostError: it is not.
        """
        place, start = _place(rank, counter), time.monotonic()
        looked = start
        while self._counters[place] < number:
            now = time.monotonic()
            if now - start < _WAKE:
                os.sched_yield()  # where there are more workers than cores, the others have them
                continue
            time.sleep(_PAUSE)
            if now - looked > PATIENCE:
                looked = now
                # Looked at once more, as it may have done its part and then ended.
                if _is_gone(self._handle, rank) and self._counters[place] < number:
                    raise WorkerLostError(f"worker {rank} is gone")


def bytes_for(workers: int) -> int:
    """The size of the memory of an exchange.

    Example:
        >>> bytes_for(2) / 2**20
        8.0078125
    """
    return workers * (mmap.PAGESIZE + SLOTS * SLOT)


def _place(rank: int, counter: int) -> int:
    """Where a counter is among the numbers of eight bytes."""
    return (rank * mmap.PAGESIZE + counter * _LINE) // 8


def _made(store: Store, workers: int) -> int | None:
    """Make the memory, and tell the others where it is."""
    handle = None
    if is_supported():
        with contextlib.suppress(OSError):
            handle = os.memfd_create(_NAME)
            try:
                os.posix_fallocate(handle, 0, bytes_for(workers))  # that there is so much of it is known from now on
            except OSError:
                os.close(handle)
                handle = None
    store.set(_NAME, "" if handle is None else f"/proc/{os.getpid()}/fd/{handle}")
    return handle


def _opened(store: Store) -> int | None:
    path = store.get(_NAME).decode()
    with contextlib.suppress(OSError):
        return os.open(path, os.O_RDWR | os.O_CLOEXEC) if path else None
    return None


def _hold(handle: int, rank: int) -> None:
    """Lock the worker's byte; the system unlocks it when the process ends, however that ends."""
    import fcntl

    fcntl.lockf(handle, fcntl.LOCK_EX, 1, rank)


def _is_gone(handle: int, rank: int) -> bool:
    """Whether nobody holds a worker's byte."""
    import fcntl

    try:
        fcntl.lockf(handle, fcntl.LOCK_SH | fcntl.LOCK_NB, 1, rank)
    except OSError:
        return False
    fcntl.lockf(handle, fcntl.LOCK_UN, 1, rank)
    return True
