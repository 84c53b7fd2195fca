"""Stores: one tensor for all N images, kept as rows and given back in float32 for the images that are asked for.

A store of 4-dimensional values keeps each row in the order H, W, C, so that what it gives back is channels_last.  All
of this is public, so that a kernel may read rows straight from ``storage``: row n is storage[n], its elements are in
that order, and where there is a ``grid`` its bytes are as ``CodeGrid`` says.
"""

from __future__ import annotations

import dataclasses
import math

import torch
from torch import Tensor

from clcalib.calibrate.codes import CodeGrid
from clcalib.calibrate.space import Block, MemoryBlock, StoreSpace


@dataclasses.dataclass(frozen=True, eq=False)
class Rows:
    """One tensor (N, *shape), row by row: floats as they are, or codes where all values are on a quantizer's grid.

    Attributes:
        block: what is stored, (N, elements), or (N, bytes) uint8 for codes.
        shape: of one row as the network sees it, (C, H, W) for images.
        dtype: of what is given back.
        grid: what the codes mean and how they lie in their bytes; None for floats.
        is_channels_last: whether the elements of a 3-dimensional row are stored, and given back, in the order H, W, C.
    """

    block: Block
    shape: tuple[int, ...]
    dtype: torch.dtype = torch.float32
    grid: CodeGrid | None = None
    is_channels_last: bool = True

    @property
    def storage(self) -> Tensor | None:
        """All rows as they are stored, contiguous, or None where they are in a file."""
        return self.block.storage

    @property
    def device(self) -> torch.device:
        """Where rows are given back."""
        return self.block.device

    @property
    def elements(self) -> int:
        """The number of values in a row."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """The size of all rows as they are stored."""
        return self.block.nbytes

    def __len__(self) -> int:
        return len(self.block)

    def take(self, index: Tensor) -> Tensor:
        """The rows of these numbers (B,), as (B, *shape)."""
        return self._values(self.block.gather(index))

    def slice(self, start: int, stop: int) -> Tensor:
        """Neighbouring rows, as ``take`` gives them, but not to be written to; ``stop`` may lie beyond the end."""
        return self._values(self.block.span(start, min(stop, len(self))))

    def first(self, count: int) -> Tensor:
        """The first rows, at most ``count``, as ``slice`` gives them."""
        return self.slice(0, count)

    def prefetch(self, index: Tensor) -> None:
        """Begin to read what the next ``take`` asks for, where the rows are in a file."""
        self.block.prefetch(index)

    def _values(self, stored: Tensor) -> Tensor:
        return self.shaped(stored.to(self.dtype) if self.grid is None else self.grid.decode(stored, self.elements))

    def shaped(self, rows: Tensor) -> Tensor:
        """Decoded rows (B, elements), in the order in which they are stored, as (B, *shape)."""
        if len(self.shape) != 3 or not self.is_channels_last:
            return rows.reshape(len(rows), *self.shape)
        channels, height, width = self.shape
        return rows.reshape(len(rows), height, width, channels).permute(0, 3, 1, 2)


RowState = tuple[Rows, ...]  # the live tensors at a cut


def as_rows(tensor: Tensor) -> Rows:
    """A tensor (N, ...) as a store, without a copy where it is contiguous, and in the order that it has.

    Images of three channels are convolved faster in that order than in channels_last.
    """
    shape = tuple(tensor.shape[1:])
    return Rows(MemoryBlock(tensor.reshape(len(tensor), -1)), shape, tensor.dtype, is_channels_last=False)


class RowsWriter:
    """Fills one store batch by batch: with codes as long as all values are on the grid, else with floats.

    Args:
        space: where the store gets its bytes.
        count: how many rows there will be.
        grid: of the quantizer that the values come from, or None.
        float_dtype: what float32 values are stored as where there is no grid; a smaller type rounds them.
        is_channels_last: the order of 3-dimensional rows (``Rows.is_channels_last``).
    """

    def __init__(
        self,
        space: StoreSpace,
        count: int,
        grid: CodeGrid | None = None,
        float_dtype: torch.dtype = torch.float32,
        *,
        is_channels_last: bool = True,
    ) -> None:
        self._space, self._count = space, count
        self._is_channels_last = is_channels_last
        self._grid, self._float_dtype = grid, float_dtype
        self._rows: Rows | None = None
        self._written = 0

    def append(self, batch: Tensor) -> None:
        """Put the next values (B, ...) behind those that are there."""
        values = _rolled(batch.detach()) if self._is_channels_last else batch.detach().flatten(1)
        packed = None if self._grid is None else self._grid.encode(values)
        if self._grid is not None and packed is None:
            self._grid = None
            self._leave_the_grid()
        if self._rows is None:
            self._rows = self._started(batch)
        self._rows.block.write(self._written, values.to(self._float_dtype_of(batch)) if packed is None else packed)
        self._written += len(batch)

    def finish(self) -> Rows:
        """The store, when all rows are in it."""
        assert self._rows is not None
        assert self._written == self._count
        return self._rows

    def _started(self, batch: Tensor) -> Rows:
        shape = tuple(batch.shape[1:])
        elements = math.prod(shape)
        if self._grid is not None:
            block = self._space.allocate((self._count, self._grid.width(elements)), torch.uint8, batch.device)
            return Rows(block, shape, grid=self._grid, is_channels_last=self._is_channels_last)
        block = self._space.allocate((self._count, elements), self._float_dtype_of(batch), batch.device)
        return Rows(block, shape, batch.dtype, is_channels_last=self._is_channels_last)

    def _leave_the_grid(self) -> None:
        """Go on in floats; what was written as codes comes along, for it comes back bit for bit."""
        codes, written = self._rows, self._written
        self._rows, self._written = None, 0
        if codes is not None:
            size = max(1, min(64, (1 << 26) // max(1, 4 * codes.elements)))  # bounds the memory
            for start in range(0, written, size):
                self.append(codes.slice(start, min(start + size, written)))

    def _float_dtype_of(self, batch: Tensor) -> torch.dtype:
        return self._float_dtype if batch.dtype == torch.float32 else batch.dtype


def _rolled(batch: Tensor) -> Tensor:
    """(B, C, H, W) -> (B, H * W * C), no copy where it is channels_last; (B, ...) -> (B, E)."""
    return (batch.permute(0, 2, 3, 1) if batch.ndim == 4 else batch).reshape(len(batch), -1)
