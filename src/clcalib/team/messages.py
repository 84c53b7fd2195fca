"""What the workers of a line send each other: a word, plain values, and tensors that come back as they lie in memory.

A message is one tensor of bytes: the length of its head, the head as JSON, and behind it each tensor's bytes.
Arithmetic may depend on the order of a tensor's axes in memory and on where it begins between two multiples of
``ALIGNMENT``, so both are kept.  Nothing is pickled.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

ALIGNMENT = 64  # bytes; what is allocated begins at a multiple of them
_LENGTH = 8  # bytes that tell the length of the head
_DTYPES = {str(dtype).removeprefix("torch."): dtype for dtype in (
    *(torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.bool),
    *(torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64),
)}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Message:
    """Attributes:
    word: what is asked for or told.
    values: what JSON holds; floats come back bit for bit.
    tensors: on the CPU; None where there is none.
    """

    word: str
    values: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    tensors: Sequence[Tensor | None] = ()

    def to_bytes(self) -> Tensor:
        """The message as bytes, (size,) uint8.

        Example:
            >>> kept = Message.from_bytes(Message("run", {"call": 3}, [torch.ones(2, 3).t(), None]).to_bytes())
            >>> kept.word, kept.values, kept.tensors[0].stride(), kept.tensors[1]
            ('run', {'call': 3}, (1, 3), None)
        """
        tensors = [None if tensor is None else tensor.detach() for tensor in self.tensors]
        rows, place = list[dict[str, Any] | None](), 0
        for tensor in tensors:
            if tensor is None:
                rows.append(None)
                continue
            place += -place % ALIGNMENT + tensor.data_ptr() % ALIGNMENT
            rows.append(_head_of(tensor, place))
            place += _span(tensor) * tensor.element_size()
        values = {"word": self.word, "values": self.values, "tensors": rows}
        head = json.dumps(values).encode()
        start = _start(len(head))
        content = torch.zeros(start + place, dtype=torch.uint8)
        content[:_LENGTH] = torch.frombuffer(bytearray(len(head).to_bytes(_LENGTH, "little")), dtype=torch.uint8)
        content[_LENGTH : _LENGTH + len(head)] = torch.frombuffer(bytearray(head), dtype=torch.uint8)
        for tensor, row in zip(tensors, rows, strict=True):
            if tensor is not None and row is not None and (size := _span(tensor)):
                flat = tensor.as_strided((size,), (1,), tensor.storage_offset()).view(torch.uint8)
                content[start + row["place"] : start + row["place"] + len(flat)] = flat
        return content

    @classmethod
    def from_bytes(cls, content: Tensor) -> Message:
        """The message; its tensors share the memory of the bytes.

        Raises:
            ValueError, KeyError: it is none.
        """
        length = int.from_bytes(content[:_LENGTH].numpy().tobytes(), "little")
        head = json.loads(content[_LENGTH : _LENGTH + length].numpy().tobytes())
        start = _start(length)
        return cls(head["word"], head["values"], [_restored(content[start:], row) for row in head["tensors"]])


def _start(length: int) -> int:
    """Where the tensors begin behind a head of this length."""
    return _LENGTH + length + -(_LENGTH + length) % ALIGNMENT


def _head_of(tensor: Tensor, place: int) -> dict[str, Any]:
    return {
        "dtype": str(tensor.dtype).removeprefix("torch."),
        "shape": list(tensor.shape),
        "strides": list(tensor.stride()),
        "place": place,
    }


def _span(tensor: Tensor) -> int:
    """How many elements lie between a tensor's first and last one, both counted; those of others may be among them."""
    if tensor.numel() == 0:
        return 0
    return 1 + sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))


def _restored(content: Tensor, row: Mapping[str, Any] | None) -> Tensor | None:
    if row is None:
        return None
    dtype, shape, strides = _DTYPES[row["dtype"]], row["shape"], row["strides"]
    if 0 in shape:
        return torch.empty_strided(shape, strides, dtype=dtype)
    count = 1 + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))
    flat = content[row["place"] : row["place"] + count * dtype.itemsize].view(dtype)
    return flat.as_strided(shape, strides, flat.storage_offset())
