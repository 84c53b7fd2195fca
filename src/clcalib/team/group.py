"""Workers that reach each other over the network: a process group of their own, beside any default group."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta

import torch
from torch import Tensor
from torch.distributed import ProcessGroupGloo, Store

from clcalib.errors import WorkerLostError

TIMEOUT = timedelta(minutes=30)


class ProcessGroup:
    """An exchange over gloo; see ``Exchange``.

    Args:
        store: where the workers find each other.
        rank, workers: which of how many this one is.
        address: of this machine, where the others reach it.
    """

    def __init__(self, store: Store, rank: int, workers: int, address: str = "127.0.0.1") -> None:
        options = ProcessGroupGloo._Options()
        options._devices = [ProcessGroupGloo.create_device(hostname=address)]
        options._timeout = TIMEOUT
        self._rank, self._workers = rank, workers
        try:
            self._group = ProcessGroupGloo(store, rank, workers, options)
        except RuntimeError as error:
            raise WorkerLostError(str(error)) from error

    def begin(self, tensor: Tensor) -> Callable[[], list[Tensor]]:
        """See ``Exchange``."""
        found = [torch.empty_like(tensor) for _ in range(self._workers)]
        try:
            work = self._group.allgather([found], [tensor.contiguous()])
        except RuntimeError as error:
            raise WorkerLostError(str(error)) from error

        def wait() -> list[Tensor]:
            try:
                work.wait()
            except RuntimeError as error:
                raise WorkerLostError(str(error)) from error
            return found

        return wait

    def broadcast(self, data: bytes | None) -> bytes:
        """See ``Exchange``."""
        size = torch.tensor([len(data or b"")])
        try:
            self._group.broadcast([size], 0).wait()
            content = torch.frombuffer(bytearray(data or bytes(int(size)) or b"\0"), dtype=torch.uint8)
            if int(size):
                self._group.broadcast([content], 0).wait()
        except RuntimeError as error:
            raise WorkerLostError(str(error)) from error
        return content.numpy().tobytes()[: int(size)]
