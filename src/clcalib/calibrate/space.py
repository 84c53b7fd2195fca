"""Where stores keep their bytes: in memory as long as the budget lasts, beyond it in temporary files."""

from __future__ import annotations

import tempfile
import threading
import weakref
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Protocol

import torch
from torch import Tensor

from clcalib.errors import ArgumentError


class Block(Protocol):
    """N rows of the same number of elements.

    Attributes:
        storage: the rows as one contiguous tensor (N, width), or None where they are in a file.
        device: where ``gather`` and ``span`` put what they return.
        nbytes: the size of all rows.
    """

    @property
    def storage(self) -> Tensor | None: ...

    @property
    def device(self) -> torch.device: ...

    @property
    def nbytes(self) -> int: ...

    def __len__(self) -> int: ...

    def write(self, start: int, rows: Tensor) -> None:
        """Put rows (B, width) at the place ``start``."""

    def gather(self, index: Tensor) -> Tensor:
        """Rows by number (B,), as a new tensor (B, width)."""

    def span(self, start: int, stop: int) -> Tensor:
        """Neighbouring rows (B, width); not to be written to."""

    def prefetch(self, index: Tensor) -> None:
        """Begin to fetch what the next ``gather`` asks for."""


class MemoryBlock:
    """Rows in memory, on any device."""

    def __init__(self, storage: Tensor) -> None:
        self.storage = storage
        self.device = storage.device
        self.nbytes = storage.numel() * storage.element_size()

    def __len__(self) -> int:
        return len(self.storage)

    def write(self, start: int, rows: Tensor) -> None:
        self.storage[start : start + len(rows)] = rows

    def gather(self, index: Tensor) -> Tensor:
        return self.storage.index_select(0, index)  # a third of the time of storage[index]

    def span(self, start: int, stop: int) -> Tensor:
        return self.storage[start:stop]

    def prefetch(self, index: Tensor) -> None:
        """There is nothing to fetch."""


class FileBlock:
    """Rows in a temporary file, which has no name where the platform allows that, so that nothing can stay behind.

    Rows are read, not mapped: the touched pages of a mapping count as memory of the process, the cache of the file
    system does not.  One read may be under way in the background: that of the next step.
    """

    storage = None

    def __init__(
        self,
        shape: tuple[int, int],
        dtype: torch.dtype,
        device: torch.device,
        folder: Path | None,
        reader: ThreadPoolExecutor,
    ) -> None:
        self.device = device
        self._count, self._width = shape
        self._dtype = dtype
        self._row_bytes = self._width * dtype.itemsize
        self.nbytes = self._count * self._row_bytes
        self._reader = reader
        self._lock = threading.Lock()  # a position is sought and read in two calls
        self._ahead: tuple[list[int], Future[Tensor]] | None = None
        self._file = tempfile.TemporaryFile(dir=folder, buffering=0)  # noqa: SIM115 - closed below
        weakref.finalize(self, self._file.close)

    def __len__(self) -> int:
        return self._count

    def write(self, start: int, rows: Tensor) -> None:
        data = _bytes_of(rows.detach().cpu().contiguous())
        with self._lock:
            self._file.seek(start * self._row_bytes)
            try:
                while data:
                    data = data[self._file.write(data) :]
            except OSError as error:
                expected = f"room for {self.nbytes:,} bytes more than the memory budget holds"
                remedy = "name a folder on a larger disk, or allow more memory"
                raise ArgumentError("spill_folder", expected, error.strerror or str(error), remedy) from error

    def gather(self, index: Tensor) -> Tensor:
        places = index.tolist()
        ahead, self._ahead = self._ahead, None
        host = ahead[1].result() if ahead is not None and ahead[0] == places else self._read(places)
        return host.to(self.device, non_blocking=True)

    def span(self, start: int, stop: int) -> Tensor:
        host = self._empty(stop - start)
        self._read_into(start, host)
        return host.to(self.device, non_blocking=True)

    def prefetch(self, index: Tensor) -> None:
        places = index.tolist()
        self._ahead = places, self._reader.submit(self._read, places)

    def close(self) -> None:
        """Give the file back; it is deleted by that."""
        with self._lock:
            self._file.close()

    def _read(self, places: list[int]) -> Tensor:
        host = self._empty(len(places))
        for position, place in enumerate(places):
            self._read_into(place, host[position : position + 1])
        return host

    def _read_into(self, start: int, rows: Tensor) -> None:
        data = _bytes_of(rows)
        with self._lock:
            self._file.seek(start * self._row_bytes)
            while data:
                count = self._file.readinto(data)
                if not count:
                    raise RuntimeError(f"row {start} of a store was read before it was written")
                data = data[count:]

    def _empty(self, count: int) -> Tensor:
        # From pinned memory a copy to the device needs no waiting; torch keeps the memory until the copy is done.
        is_pinned = self.device.type == "cuda"
        return torch.empty((count, self._width), dtype=self._dtype, pin_memory=is_pinned)


class StoreSpace:
    """Gives out blocks: in memory as long as the budget lasts, else in files.  At its end all files are gone.

    A block gives its bytes back when nothing refers to it any more.

    Attributes:
        used, in_files: the bytes of all blocks that there are now, in memory and in files.
        most_used, most_in_files: the most that these came to, without those that are only passing.

    Args:
        budget: how many bytes all blocks in memory may have at a time; None is no limit.
        folder: where temporary files are made; None is the system's place for them (``TMPDIR``).

    Example:
        >>> with StoreSpace(budget=100) as space:
        ...     small, large = (space.allocate((rows, 8), torch.uint8) for rows in (4, 40))
        >>> small.storage is None, large.storage is None
        (False, True)
    """

    def __init__(self, budget: int | None = None, folder: Path | None = None) -> None:
        self._budget, self._folder = budget, folder
        self._files: weakref.WeakSet[FileBlock] = weakref.WeakSet()
        self._reader: ThreadPoolExecutor | None = None
        self.used = self.in_files = 0
        self.most_used = self.most_in_files = 0
        self._passing = {"used": 0, "in_files": 0}

    def allocate(
        self,
        shape: tuple[int, int],
        dtype: torch.dtype,
        device: torch.device | str = "cpu",
        *,
        is_passing: bool = False,
    ) -> MemoryBlock | FileBlock:
        """A block of ``shape`` (rows, elements of a row), to be written before it is read.

        Args:
            shape: its size.
            dtype: of the elements.
            device: where rows are given back.
            is_passing: whether it is no store of a unit, but a value inside one that is put aside for a moment; it
                counts for the budget, not for ``most_used``.
        """
        nbytes = shape[0] * shape[1] * dtype.itemsize
        if self._budget is not None and self.used + nbytes > self._budget:
            self._reader = self._reader or ThreadPoolExecutor(1, "clcalib-prefetch")
            file = FileBlock(shape, dtype, torch.device(device), self._folder, self._reader)
            self._files.add(file)
            self._count(file, "in_files", nbytes, is_passing=is_passing)
            return file
        block = MemoryBlock(torch.empty(shape, dtype=dtype, device=device))
        self._count(block, "used", nbytes, is_passing=is_passing)
        return block

    def close(self) -> None:
        """Wait for what is being read, and delete all files."""
        if self._reader is not None:
            self._reader.shutdown(wait=True, cancel_futures=True)
            self._reader = None
        for file in list(self._files):
            file.close()

    def __enter__(self) -> StoreSpace:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _count(self, block: Block, kind: str, nbytes: int, *, is_passing: bool) -> None:
        """Count a block, as used or in files, for as long as anything refers to it."""
        self._add(kind, nbytes, is_passing)
        most, stored = f"most_{kind}", getattr(self, kind) - self._passing[kind]
        setattr(self, most, max(getattr(self, most), stored))
        weakref.finalize(block, self._add, kind, -nbytes, is_passing).atexit = False

    def _add(self, kind: str, nbytes: int, is_passing: bool) -> None:
        setattr(self, kind, getattr(self, kind) + nbytes)
        self._passing[kind] += nbytes * is_passing


def _bytes_of(rows: Tensor) -> memoryview:
    """The memory of a contiguous tensor on the CPU."""
    return rows.view(torch.uint8).reshape(-1).numpy().data
