"""Workers that reach each other through torch's collective libraries: gloo on CPUs, NCCL on NVIDIA GPUs.

The group is one of this run alone; the process's default group, which may be somebody else's, is neither made nor used.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any, Protocol, cast

import torch
import torch.distributed as dist
from torch import Tensor
from torch._C._distributed_c10d import PrefixStore, Store

from clcalib.errors import WorkerLostError

PATIENCE = 1.0  # seconds between two looks at whether the others are still there, while they are waited for
_LONGEST = timedelta(days=30)  # a worker may compute for long; that it is gone is noticed otherwise
_GLANCE = 2e-4  # seconds between two looks at whether a GPU is done


def _nothing() -> None:
    """Look at nothing."""


class _Collectives(Protocol):
    """What is used of a group of torch, or of one of its backends."""

    def size(self) -> int: ...

    def allgather(self, output_tensors: list[list[Tensor]], input_tensors: list[Tensor]) -> dist.Work: ...

    def broadcast(self, tensors: list[Tensor], opts: dist.BroadcastOptions) -> dist.Work: ...


class ProcessGroup:
    """An exchange over a group of processes.

    A worker that ends is noticed at once, by its closed connection.  One that falls silent while its connection stays
    open (a link that is down) is noticed by what ``watch`` looks at.

    Args:
        group: a group of ``torch.distributed``, or a backend of it, over all workers in the order of their ranks.
        device: where what is exchanged has to lie: the CPU for gloo, the worker's own GPU for NCCL.
        watch: called about once a second while others are waited for; raises ``WorkerLostError`` where one is gone.

    Attributes:
        messages: how many tensors this worker has given to the others.
        sent_bytes: their bytes, each counted once, whatever the number of workers that got it.
    """

    def __init__(
        self,
        group: _Collectives,
        *,
        device: torch.device | str = "cpu",
        watch: Callable[[], None] = _nothing,
    ) -> None:
        self._group, self._device, self._watch = group, torch.device(device), watch
        self.messages = self.sent_bytes = 0

    @classmethod
    def join(
        cls,
        store: Store,
        rank: int,
        workers: int,
        *,
        device: torch.device | str = "cpu",
        address: str | None = None,
        watch: Callable[[], None] = _nothing,
    ) -> ProcessGroup:
        """Meet the other workers in a store, and connect with each of them.

        Args:
            store: where all meet; keys of their own are put into it.
            rank: of this worker.
            workers: their number.
            device: as above; it chooses the library.
            address: of this machine, as the others reach it; None leaves it to the library.  For gloo alone.
            watch: as above.

        Raises:
            WorkerLostError: not all of them came, within the time that the store waits.
        """
        place = torch.device(device)
        own = PrefixStore("clcalib-exchange", store)
        try:
            group = _nccl(own, rank, workers) if place.type == "cuda" else _gloo(own, rank, workers, address)
        except RuntimeError as error:
            raise WorkerLostError(f"the {workers} workers cannot be connected: {first_line(error)}") from error
        return cls(group, device=place, watch=watch)

    def begin(self, tensor: Tensor) -> Callable[[], list[Tensor]]:
        """See ``Exchange``; the tensor must stay as it is until it was waited for."""
        own = tensor.detach().to(self._device).contiguous()
        found = [torch.empty_like(own) for _ in range(self._group.size())]
        self.messages, self.sent_bytes = self.messages + 1, self.sent_bytes + own.nbytes
        try:
            work = self._group.allgather([found], [own])
        except RuntimeError as error:
            raise _lost(error) from error

        def wait() -> list[Tensor]:
            self._wait(work)
            return [each.to(tensor.device) for each in found]

        return wait

    def broadcast(self, data: bytes | None) -> bytes:
        """See ``Exchange``."""
        size = torch.tensor([0 if data is None else len(data)], device=self._device)
        self._from(0, size)
        content = torch.zeros(int(size), dtype=torch.uint8, device=self._device)
        if data:
            content.copy_(torch.frombuffer(bytearray(data), dtype=torch.uint8))
        if len(content):
            self._from(0, content)
        return content.cpu().numpy().tobytes()

    def give(self, content: Tensor, rank: int) -> None:
        """Give bytes (size,) uint8, at least one, to all others, who ``take`` them; ``rank`` is this worker's."""
        self.messages, self.sent_bytes = self.messages + 1, self.sent_bytes + content.nbytes
        self._from(rank, torch.tensor([len(content)], device=self._device))
        self._from(rank, content.to(self._device))

    def take(self, rank: int) -> Tensor:
        """What the worker of this rank gives."""
        size = torch.zeros(1, dtype=torch.int64, device=self._device)
        self._from(rank, size)
        content = torch.empty(int(size), dtype=torch.uint8, device=self._device)
        self._from(rank, content)
        return content.cpu()

    def _from(self, rank: int, tensor: Tensor) -> None:
        options = dist.BroadcastOptions()
        options.rootRank, options.rootTensor = rank, 0
        try:
            self._wait(self._group.broadcast([tensor], options))
        except RuntimeError as error:
            raise _lost(error) from error

    def _wait(self, work: dist.Work) -> None:
        """Wait for as long as the others are there.

        Raises:
            WorkerLostError: one is not.
        """
        if self._device.type == "cuda":
            self._wait_for_device(work)
        while True:
            try:
                work.wait(timedelta(seconds=PATIENCE))
            except RuntimeError as error:
                if work.is_completed():
                    raise _lost(error) from error
                self._watch()  # it is only late
            else:
                return

    def _wait_for_device(self, work: dist.Work) -> None:
        """There ``wait`` comes back at once, and leaves it to the device to wait; so nothing would be noticed."""
        looked = time.monotonic()
        while not work.is_completed():
            time.sleep(_GLANCE)
            if time.monotonic() - looked > PATIENCE:
                looked = time.monotonic()
                self._watch()


def _gloo(store: Store, rank: int, workers: int, address: str | None) -> _Collectives:
    gloo: Any = dist.ProcessGroupGloo
    options = gloo._Options()
    options._timeout = _LONGEST
    device = gloo.create_default_device() if address is None else gloo.create_device(hostname=address)
    options._devices = [device]
    return cast(_Collectives, gloo(store, rank, workers, options))


def _nccl(store: Store, rank: int, workers: int) -> _Collectives:
    nccl: Any = dist.ProcessGroupNCCL
    return cast(_Collectives, nccl(store, rank, workers, _LONGEST))


def _lost(error: Exception) -> WorkerLostError:
    return WorkerLostError(f"another worker is gone or cannot be reached: {first_line(error)}")


def first_line(error: Exception) -> str:
    """What a library says, without where in its code it says so, and without advice."""
    line = str(error).splitlines()[0] if str(error) else type(error).__name__
    return line.rpartition("] ")[2].partition(". ")[0] or line
