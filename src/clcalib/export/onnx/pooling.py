"""Windows over pixels: pooling, adaptive pooling, resizing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from clcalib.export.onnx.call import Builder, Call, fixed
from clcalib.export.onnx.writer import UnsupportedError

_IS_COUNTED = "count_include_pad"


def max_pool(call: Call) -> None:
    """The largest value of each window; with ``ceil_mode`` the last window reaches beyond the padding."""
    rank = _spatial_rank(call)
    kernel, stride, pads, dilation = _window(call, rank)
    sizes: dict[str, Any] = {"kernel_shape": kernel, "strides": stride, "pads": pads, "dilations": dilation}
    call.end_first("MaxPool", call.tensor("self"), **sizes)


def avg_pool(call: Call) -> None:
    """The mean of each window; elements beyond the padding, where ``ceil_mode`` reaches, are never counted."""
    rank = _spatial_rank(call)
    if call.get("divisor_override") is not None:
        raise UnsupportedError("divisor_override")
    kernel, stride, pads, _ = _window(call, rank)
    padding = call.numbers("padding", rank)
    source, is_counted = call.tensor("self"), int(bool(call.get(_IS_COUNTED, True)))
    is_longer = pads[rank:] != padding
    if is_counted and is_longer and any(padding):
        around = [0, 0, *padding]
        source = call.step("Pad", source, call.sizes(around * 2))
        pads = [0] * rank + [end - own for end, own in zip(pads[rank:], padding, strict=True)]
    is_counted = 0 if is_longer else is_counted
    sizes: dict[str, Any] = {"kernel_shape": kernel, "strides": stride, "pads": pads}
    call.end("AveragePool", source, **sizes, count_include_pad=is_counted)


def _spatial_rank(call: Call) -> int:
    name = str(call.node.target)
    rank = next(rank for rank in (1, 2, 3) if f"pool{rank}d" in name)
    if call.rank("self") != rank + 2:
        raise UnsupportedError("an input without a batch dimension")
    return rank


def _window(call: Call, rank: int) -> tuple[list[int], list[int], list[int], list[int]]:
    """Kernel, strides, pads and dilations; the pads at the end are made so long that rounding down gives the size."""
    kernel, padding = call.numbers("kernel_size", rank), call.numbers("padding", rank)
    stride = call.numbers("stride", rank) or kernel
    dilation = call.numbers("dilation", rank) if "dilation" in call else [1] * rank
    ends = list(padding)
    if call.get("ceil_mode"):
        result = call.result[0] if isinstance(call.result, tuple | list) else call.result
        for place in range(rank):
            size, made = fixed(call.value("self").shape[2 + place]), fixed(result.shape[2 + place])
            needed = (made - 1) * stride[place] + dilation[place] * (kernel[place] - 1) + 1 - size - padding[place]
            ends[place] = max(padding[place], needed)
    return kernel, stride, [*padding, *ends], dilation


def adaptive_avg_pool(call: Call) -> None:
    """The mean of windows that divide the image into so many; windows that overlap are written as matrix products."""
    rank = _spatial_rank(call)
    sizes = [fixed(size) for size in call.value("self").shape[2:]]
    wanted = [fixed(size) for size in call.result.shape[2:]]
    source = call.tensor("self")
    if all(size == 1 for size in wanted):
        call.end("GlobalAveragePool", source)
    elif all(size % made == 0 for size, made in zip(sizes, wanted, strict=True)):
        kernel = [size // made for size, made in zip(sizes, wanted, strict=True)]
        call.end("AveragePool", source, kernel_shape=kernel, strides=kernel)
    elif rank == 2:
        rows, columns = (_shares(size, made) for size, made in zip(sizes, wanted, strict=True))
        narrow = call.step("MatMul", source, call.constant(columns.mT, "columns"))
        call.end("MatMul", call.constant(rows, "rows"), narrow)
    elif rank == 1:
        call.end("MatMul", source, call.constant(_shares(sizes[0], wanted[0]).mT, "shares"))
    else:
        raise UnsupportedError("windows of different sizes in three dimensions")


def _shares(size: int, made: int) -> Tensor:  # (made, size)
    """Row i holds 1 / n on the n places floor(i * size / made) to ceil((i + 1) * size / made)."""
    shares = torch.zeros(made, size)
    for place in range(made):
        start, end = place * size // made, -(-(place + 1) * size // made)
        shares[place, start:end] = 1.0 / (end - start)
    return shares


def adaptive_max_pool(call: Call) -> None:
    """The largest value of windows that divide the image into so many equal ones."""
    _spatial_rank(call)
    result = call.result[0] if isinstance(call.result, tuple | list) else call.result
    shapes = (call.value("self").shape[2:], result.shape[2:])
    pairs = [(fixed(size), fixed(made)) for size, made in zip(*shapes, strict=True)]
    if any(size % made for size, made in pairs):
        raise UnsupportedError("windows of different sizes")
    kernel = [size // made for size, made in pairs]
    call.end_first("MaxPool", call.tensor("self"), kernel_shape=kernel, strides=kernel)


def resize(mode: str, is_antialiased: bool = False) -> Builder:
    """``upsample_nearest``, ``upsample_bilinear`` and ``upsample_bicubic``, by factors or to a size."""

    def build(call: Call) -> None:
        source = call.tensor("input" if "input" in call else "self")
        factors: Sequence[float] = _factors(call) or whole_factors(call)
        # All axes are named: where only some are, ONNX Runtime 1.32 cannot turn the operator around for its kernels.
        if factors:
            target = (call.constant(torch.tensor([1.0, 1.0, *map(float, factors)])), "")
        else:
            sizes = call.sizes([fixed(size) for size in call.result.shape[2:]])
            shape = call.shape_of("input" if "input" in call else "self", 0, 2)
            target = ("", call.step("Concat", shape, sizes, axis=0))
        kind = {"nearest": "asymmetric"}.get(mode, "align_corners" if call.get("align_corners") else "half_pixel")
        attributes: dict[str, Any] = {"mode": mode}
        attributes["coordinate_transformation_mode"] = kind
        if mode == "nearest":
            attributes["nearest_mode"] = "floor"
        if mode == "cubic":
            attributes["cubic_coeff_a"] = -0.75
        if is_antialiased:
            attributes |= {"antialias": 1, "cubic_coeff_a": -0.5}
        call.end("Resize", source, "", *target, **attributes)

    return build


def whole_factors(call: Call) -> list[int]:
    """How many times larger each side becomes, where these are whole numbers; else []."""
    source = call.value("input" if "input" in call else "self")
    sizes = [(fixed(size), fixed(made)) for size, made in zip(source.shape[2:], call.result.shape[2:], strict=True)]
    return [made // size for size, made in sizes] if all(made % size == 0 for size, made in sizes) else []


def _factors(call: Call) -> list[float]:
    """The factors, where they are given and the sizes alone would not tell them."""
    given: Sequence[float] = call.numbers("scale_factors")
    source = call.value("input" if "input" in call else "self")
    sizes = list(zip(map(fixed, source.shape[2:]), map(fixed, call.result.shape[2:]), strict=True))
    is_told = all(size * factor == made for (size, made), factor in zip(sizes, given, strict=False))
    return [] if is_told or call.get("align_corners") else [float(factor) for factor in given]
