"""Operators that only move values: reshapes, slices, concatenations, padding, chosen elements."""

from __future__ import annotations

import torch
from torch import fx

from clcalib.capture.graph import symbol_of, value_of
from clcalib.export.onnx.call import Call, fixed
from clcalib.export.onnx.writer import UnsupportedError
from clcalib.quant.placement import pads_with_numbers, plain_name

LARGEST = 2**63 - 1
PADS = ("pad", "constant_pad_nd")


def reshape(call: Call) -> None:
    """Another shape; the one size that follows the batch is left to the runtime, which keeps the graph simple."""
    end_reshape(call, call.tensor("self" if "self" in call else "input"))


def end_reshape(call: Call, source: str) -> None:
    """Write the reshape to the shape that the node's value has."""
    shape = list(call.result.shape)
    free = [place for place, size in enumerate(shape) if symbol_of(size) is not None]
    if len(free) > 1:
        if "shape" not in call and "size" not in call:
            raise UnsupportedError("several sizes that follow the batch")
        call.end("Reshape", source, call.sizes(call["shape" if "shape" in call else "size"]))
        return
    sizes = [-1 if place in free else int(size) for place, size in enumerate(shape)]
    call.end("Reshape", source, call.sizes(sizes))


def transpose(call: Call) -> None:
    """Two axes change places."""
    order = list(range(call.rank("self")))
    first, second = (call.axis(name) for name in ("dim0", "dim1"))
    order[first], order[second] = order[second], order[first]
    call.end("Transpose", call.tensor("self"), perm=order)


def matrix_transpose(call: Call) -> None:
    """The last two axes change places (``t``, ``mT``)."""
    order = list(range(call.rank("self")))
    call.end("Transpose", call.tensor("self"), perm=[*order[:-2], *order[-2:][::-1]])


def permute(call: Call) -> None:
    """Axes in another order."""
    rank = call.rank("self")
    call.end("Transpose", call.tensor("self"), perm=[int(axis) % rank for axis in call["dims"]])


def expand(call: Call) -> None:
    """Axes of size 1 repeated; -1 keeps a size, which ONNX writes as 1."""
    sizes = call["size"]
    call.end("Expand", call.tensor("self"), call.sizes([1 if size == -1 else size for size in sizes]))


def repeat(call: Call) -> None:
    """The whole tensor repeated along each axis."""
    repeats = call["repeats"]
    source, missing = call.tensor("self"), len(repeats) - call.rank("self")
    if missing:
        source = call.step("Unsqueeze", source, call.sizes(range(missing)))
    call.end("Tile", source, call.sizes(repeats))


def repeat_interleave(call: Call) -> None:
    """Each slice of an axis repeated."""
    if call.get("dim") is None or isinstance(call["repeats"], fx.Node):
        raise UnsupportedError("repeats that differ, or no axis")
    axis, times = call.axis("dim"), int(call["repeats"])
    places = torch.arange(fixed(call.value("self").shape[axis])).repeat_interleave(times)
    call.end("Gather", call.tensor("self"), call.constant(places, "places"), axis=axis)


def concatenate(call: Call) -> None:
    """Tensors one behind the other; empty ones of rank 1 count for nothing."""
    dtype, tensors = call.result.dtype, call["tensors"]
    axis = int(call["dim"]) % call.result.dim()
    call.end("Concat", *(call.name_of(tensor, dtype) for tensor in tensors), axis=axis)


def stack(call: Call) -> None:
    """Tensors one behind the other along a new axis."""
    dtype, axis = call.result.dtype, int(call["dim"]) % call.result.dim()
    where = call.sizes([axis])
    parts = [call.step("Unsqueeze", call.name_of(tensor, dtype), where) for tensor in call["tensors"]]
    call.end("Concat", *parts, axis=axis)


def split(call: Call) -> None:
    """Pieces of an axis (``split``, ``split_with_sizes``, ``chunk``)."""
    axis = call.axis("dim")
    lengths = [fixed(part.shape[axis]) for part in call.result]
    call.end_several("Split", call.tensor("self"), call.sizes(lengths), axis=axis)


def unbind(call: Call) -> None:
    """The slices of an axis, each without it."""
    axis = call.axis("dim")
    for place, output in enumerate(call.outputs):
        if not output:
            continue
        index = call.constant(torch.tensor(place))
        call.writer.step("Gather", (call.tensor("self"), index), (output,), call.place(output), axis=axis)


def select(call: Call) -> None:
    """One slice of an axis, without it."""
    index = call["index"]
    name = call.size(index) if isinstance(index, fx.Node) else call.constant(torch.tensor(int(index)))
    if isinstance(index, fx.Node):
        name = call.step("Squeeze", name)
    call.end("Gather", call.tensor("self"), name, axis=call.axis("dim"))


def slice_(call: Call) -> None:
    """A range of an axis."""
    start, end, step = call.get("start", 0), call.get("end", LARGEST), call.get("step", 1)
    end = LARGEST if isinstance(end, int) and end >= LARGEST else end
    ends = [call.sizes([value]) for value in (start, end)]
    call.end("Slice", call.tensor("self"), *ends, call.sizes([call.axis("dim")]), call.sizes([step]))


def roll(call: Call) -> None:
    """Slices that leave an axis at its end come in again at its beginning."""
    shifts, axes = call.numbers("shifts"), call.numbers("dims")
    if not axes:
        raise UnsupportedError("without axes")
    source, rank = call.tensor("self"), call.rank("self")
    for shift, axis in zip(shifts, (int(axis) % rank for axis in axes), strict=True):
        size = fixed(call.value("self").shape[axis])
        cut = -int(shift) % size
        if cut:
            parts = slice_of(call, axis, cut, size, source), slice_of(call, axis, 0, cut, source)
            source = call.step("Concat", *parts, axis=axis)
    call.end("Identity", source)


def flip(call: Call) -> None:
    """Axes in reverse order."""
    axes = call.axes("dims")
    each = len(axes)
    bounds = [call.sizes([value] * each) for value in (-1, -LARGEST)]
    call.end("Slice", call.tensor("self"), *bounds, call.sizes(axes), call.sizes([-1] * each))


def pad(call: Call) -> None:
    """Values around a tensor: ``pad``, ``constant_pad_nd``, ``reflection_pad``, ``replication_pad``."""
    before, after = _amounts(call)
    name = str(call.node.target)
    mode = "reflect" if "reflection" in name else "replicate" if "replication" in name else call.get("mode", "constant")
    onnx_mode = {"constant": "constant", "reflect": "reflect", "replicate": "edge", "circular": "wrap"}[mode]
    value = [call.name_of(call.number("value", 0), call.result.dtype)] if mode == "constant" else []
    if mode == "constant" and call.padding is not None:
        value = [call.constant(call.padding)]
    call.end("Pad", call.tensor("self"), call.sizes(before + after), *value, mode=onnx_mode)


def _amounts(call: Call) -> tuple[list[int], list[int]]:
    """How much a pad puts before and behind each axis."""
    given, rank = call.numbers("pad" if "pad" in call else "padding"), call.rank("self")
    before, after = [0] * rank, [0] * rank
    for place in range(len(given) // 2):  # PyTorch counts from the last axis
        before[rank - 1 - place], after[rank - 1 - place] = int(given[2 * place]), int(given[2 * place + 1])
    return before, after


def zeros_around(call: Call) -> tuple[list[int], list[int]] | None:
    """How many zeros a pad puts before and behind each axis; None for any other operator, mode or value."""
    if plain_name(call.node) not in PADS or pads_with_numbers(call.node) or call.get("mode", "constant") != "constant":
        return None
    return _amounts(call)


def index_select(call: Call) -> None:
    """Chosen slices of an axis."""
    call.end("Gather", call.tensor("self"), call.tensor("index"), axis=call.axis("dim"))


def gather(call: Call) -> None:
    """For each element of the index, an element of the axis."""
    call.end("GatherElements", call.tensor("self"), call.tensor("index"), axis=call.axis("dim"))


def embedding(call: Call) -> None:
    """Rows of a table."""
    call.end("Gather", call.tensor("weight"), call.tensor("indices"), axis=0)


def index(call: Call) -> None:
    """One tensor of whole numbers as an index, the other axes in full."""
    places = [(axis, place) for axis, place in enumerate(call["indices"]) if place is not None]
    if len(places) != 1:
        raise UnsupportedError("several tensors as index")
    ((axis, place),) = places
    if value_of(place).dtype == torch.bool:
        raise UnsupportedError("a mask as index")
    call.end("Gather", call.tensor("self"), call.name_of(place, torch.int64), axis=axis)


def pixel_shuffle(call: Call) -> None:
    """Channels become pixels."""
    factor = int(call.number("upscale_factor"))
    call.end("DepthToSpace", call.tensor("self"), blocksize=factor, mode="CRD")


def slice_of(call: Call, axis: int, start: int, end: int, source: str = "") -> str:
    """A range of an axis, "" where it is empty."""
    if start >= end:
        return ""
    bounds = (call.sizes([value]) for value in (start, end, axis))
    return call.step("Slice", source or call.tensor("self"), *bounds)
