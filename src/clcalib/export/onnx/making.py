"""Operators that make tensors, or put new values into a copy of one."""

from __future__ import annotations

import torch
from torch import fx

from clcalib.capture.graph import symbol_of
from clcalib.export.onnx.call import ONNX_TYPES, Builder, Call, fixed
from clcalib.export.onnx.movement import LARGEST, slice_of
from clcalib.export.onnx.writer import UnsupportedError


def slice_scatter(call: Call) -> None:
    """A copy with a range of an axis replaced, put together from what is before, the new part, and what is behind."""
    axis, step = call.axis("dim"), call.get("step", 1)
    if step != 1:
        raise UnsupportedError("a step other than 1")
    if not call.get("start") and call.get("end", LARGEST) == LARGEST:
        call.end("Identity", call.tensor("src"))  # all of the axis, which may then be the batch
        return
    size = fixed(call.value("self").shape[axis])
    start, end = (_bounded(call.number(name, default), size) for name, default in (("start", 0), ("end", size)))
    parts = [slice_of(call, axis, 0, start), call.tensor("src"), slice_of(call, axis, max(start, end), size)]
    call.end("Concat", *(part for part in parts if part), axis=axis)


def select_scatter(call: Call) -> None:
    """A copy with one slice of an axis replaced."""
    axis = call.axis("dim")
    size = fixed(call.value("self").shape[axis])
    place = int(call.number("index")) % size
    part = call.step("Unsqueeze", call.tensor("src"), call.sizes([axis]))
    parts = [slice_of(call, axis, 0, place), part, slice_of(call, axis, place + 1, size)]
    call.end("Concat", *(part for part in parts if part), axis=axis)


def full(call: Call) -> None:
    """A tensor of one value (``full``, ``zeros``, ``ones`` and what is made like another tensor)."""
    name = str(call.node.target)
    fill = 0 if "zeros" in name else 1 if "ones" in name else call.number("fill_value")
    result = call.result
    value = torch.tensor([fill], dtype=result.dtype)
    if all(symbol_of(size) is None for size in result.shape):
        shape = call.sizes([int(size) for size in result.shape])
    elif "size" in call:
        shape = call.sizes(call["size"])
    else:
        shape = call.step("Shape", call.tensor("self"))
    call.end("Expand", call.constant(value), shape)


def overwrite(call: Call) -> None:
    """All of a tensor replaced by another that is repeated to its shape (``copy``) or by a number (``fill``)."""
    new = call.tensor("src" if "src" in call else "value", call.result.dtype)
    call.end("Expand", new, call.step("Shape", call.tensor("self")))


def arange(call: Call) -> None:
    """Numbers from start to end."""
    dtype = call.result.dtype
    start, end, step = call.get("start", 0), call["end"], call.get("step", 1)
    if not any(isinstance(value, fx.Node) for value in (start, end, step)):
        call.end("Identity", call.constant(torch.arange(start, end, step, dtype=dtype), "numbers"))
        return
    scalars = [call.step("Squeeze", call.size(v)) if isinstance(v, fx.Node) else v for v in (start, end, step)]
    names = [v if isinstance(v, str) else call.constant(torch.tensor(v)) for v in scalars]
    call.end("Cast", call.step("Range", *names), to=ONNX_TYPES[dtype])


def triangle(is_upper: bool) -> Builder:
    """``triu`` and ``tril``."""

    def build(call: Call) -> None:
        diagonal = call.constant(torch.tensor(int(call.number("diagonal", 0))))
        call.end("Trilu", call.tensor("self"), diagonal, upper=int(is_upper))

    return build


def _bounded(place: int, size: int) -> int:
    return max(0, min(place + size if place < 0 else place, size))
