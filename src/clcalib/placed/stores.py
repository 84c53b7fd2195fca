"""The stores of a cut on their way from the worker before it to the one behind it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from clcalib.calibrate.codes import CodeGrid
from clcalib.calibrate.space import StoreSpace
from clcalib.calibrate.store import Rows, RowState
from clcalib.team.line import Line
from clcalib.team.messages import Message

STORES, ROWS = "stores", "rows"
_MOST = 1 << 26  # bytes of a message, about
_DTYPES = {str(dtype): dtype for dtype in (
    *(torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.bool),
    *(torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64),
)}  # fmt: skip

Kept = Mapping[str, RowState]  # by name


class KeptStores:
    """The stores behind a worker's last unit, until the next worker has them.

    Args:
        kept: by name; a store that has several names is sent once.
    """

    def __init__(self, kept: Kept) -> None:
        self._rows = list({id(rows): rows for state in kept.values() for rows in state}.values())
        places = {id(rows): place for place, rows in enumerate(self._rows)}
        self._places = {name: [places[id(rows)] for rows in state] for name, state in kept.items()}

    def answer(self, message: Message) -> Message:
        """What is asked for: which stores there are, or rows of one."""
        if message.word == STORES:
            return Message(STORES, {"names": self._places, "rows": [_described(rows) for rows in self._rows]})
        rows = self._rows[message.values["store"]]
        return Message(ROWS, {}, [rows.block.span(message.values["start"], message.values["stop"])])


def fetched(line: Line, rank: int, space: StoreSpace) -> dict[str, RowState]:
    """The stores that a worker keeps, in this worker's own space."""
    told = line.ask(rank, Message(STORES)).values
    found = [_fetched(line, rank, space, number, row) for number, row in enumerate(told["rows"])]
    return {name: tuple(found[place] for place in places) for name, places in told["names"].items()}


def _fetched(line: Line, rank: int, space: StoreSpace, number: int, row: Mapping[str, Any]) -> Rows:
    count, width = row["size"]
    block = space.allocate((count, width), _DTYPES[row["stored"]])
    step = max(1, _MOST // max(1, width * _DTYPES[row["stored"]].itemsize))
    for start in range(0, count, step):
        asked = Message(ROWS, {"store": number, "start": start, "stop": min(count, start + step)})
        (part,) = line.ask(rank, asked).tensors
        assert part is not None
        block.write(start, part)
    grid = None if row["grid"] is None else CodeGrid(*row["grid"])
    return Rows(block, tuple(row["shape"]), _DTYPES[row["dtype"]], grid, row["is_channels_last"])


def _described(rows: Rows) -> dict[str, Any]:
    first, grid = rows.block.span(0, 1), rows.grid
    return {
        "size": [len(rows), first.shape[1]],
        "stored": str(first.dtype),
        "shape": list(rows.shape),
        "dtype": str(rows.dtype),
        "grid": None if grid is None else [grid.scale, grid.zero_point, grid.offset, grid.bits_stored],
        "is_channels_last": rows.is_channels_last,
    }
