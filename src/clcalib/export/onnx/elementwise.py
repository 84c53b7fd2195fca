"""Operators that work element by element: arithmetic, comparisons, choices, casts, sizes."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, fx

from clcalib.capture.graph import value_of
from clcalib.export.onnx.call import ONNX_TYPES, Builder, Call
from clcalib.export.onnx.writer import UnsupportedError


def unary(operator: str, **attributes: Any) -> Builder:
    """The ONNX operator of one input that does the same; arguments beyond the first have no effect on it."""

    def build(call: Call) -> None:
        value = call.value("self")
        is_promoted = call.result.is_floating_point() and not value.is_floating_point()
        call.end(operator, call.tensor("self", call.result.dtype if is_promoted else None), **attributes)

    return build


def binary(operator: str) -> Builder:
    """add, sub, mul, div and their like of two tensors, or of a tensor and a number, in the type of the result."""

    def build(call: Call) -> None:
        dtype = call.result.dtype
        left, right = call.tensor("self", dtype), call.tensor("other", dtype)
        alpha = call.number("alpha", 1)
        if alpha != 1:
            right = call.step("Mul", right, call.name_of(alpha, dtype))
        call.end(operator, left, right)

    return build


def reversed_subtraction(call: Call) -> None:
    """other - alpha * self."""
    dtype = call.result.dtype
    left, alpha = call.tensor("self", dtype), call.number("alpha", 1)
    if alpha != 1:
        left = call.step("Mul", left, call.name_of(alpha, dtype))
    call.end("Sub", call.tensor("other", dtype), left)


def division(call: Call) -> None:
    """A true quotient, or one that is rounded down or toward zero."""
    dtype, mode = call.result.dtype, call.get("rounding_mode")
    operands = call.tensor("self", dtype), call.tensor("other", dtype)
    if mode is None:
        call.end("Div", *operands)
    elif dtype.is_floating_point and mode == "floor":
        call.end("Floor", call.step("Div", *operands))
    else:
        raise UnsupportedError(f"rounding_mode={mode!r} in {dtype}")


def power(call: Call) -> None:
    """x to the power of a number or a tensor; the square, the root and their inverses as such."""
    dtype = call.result.dtype
    source, exponent = call.tensor("self", dtype), call["exponent"]
    if exponent == 2:
        call.end("Mul", source, source)
    elif exponent == 0.5:
        call.end("Sqrt", source)
    elif exponent == -0.5:
        call.end("Reciprocal", call.step("Sqrt", source))
    else:
        call.end("Pow", source, call.tensor("exponent", dtype))


def comparison(operator: str, is_negated: bool = False) -> Builder:
    """A comparison in the type that PyTorch compares in."""

    def build(call: Call) -> None:
        sides = [value_of(side) if isinstance(side, fx.Node) else side for side in (call["self"], call["other"])]
        dtype = torch.result_type(*sides)
        write = call.step if is_negated else call.end
        result = write(operator, call.tensor("self", dtype), call.tensor("other", dtype))
        if is_negated:
            call.end("Not", result)

    return build


def rounding(call: Call) -> None:
    """The nearest whole number, halves to even."""
    if call.number("decimals", 0) != 0:
        raise UnsupportedError("decimals")
    call.end("Round", call.tensor("self"))


def reciprocal_root(call: Call) -> None:
    """1 / sqrt(x)."""
    call.end("Reciprocal", call.step("Sqrt", call.tensor("self")))


def exponential_less_one(call: Call) -> None:
    """exp(x) - 1."""
    call.end("Sub", call.step("Exp", call.tensor("self")), call.name_of(1.0))


def log_of_more(call: Call) -> None:
    """log(1 + x)."""
    call.end("Log", call.step("Add", call.tensor("self"), call.name_of(1.0)))


def scaled_log(base: float) -> Builder:
    """log(x) / log(base)."""

    def build(call: Call) -> None:
        call.end("Mul", call.step("Log", call.tensor("self")), call.name_of(1.0 / math.log(base)))

    return build


def where(call: Call) -> None:
    """One of two values for each element."""
    dtype = call.result.dtype
    call.end("Where", call.tensor("condition"), call.tensor("self", dtype), call.tensor("other", dtype))


def masked_fill(call: Call) -> None:
    """A number where the mask is true."""
    dtype = call.result.dtype
    call.end("Where", call.tensor("mask"), call.tensor("value", dtype), call.tensor("self", dtype))


def add_product(call: Call) -> None:
    """self + value * tensor1 * tensor2."""
    _add_combined(call, "Mul")


def add_quotient(call: Call) -> None:
    """self + value * tensor1 / tensor2."""
    _add_combined(call, "Div")


def _add_combined(call: Call, operator: str) -> None:
    dtype = call.result.dtype
    combined = call.step(operator, call.tensor("tensor1", dtype), call.tensor("tensor2", dtype))
    factor = call.number("value", 1)
    combined = combined if factor == 1 else call.step("Mul", combined, call.name_of(factor, dtype))
    call.end("Add", call.tensor("self", dtype), combined)


def logical_not(call: Call) -> None:
    """The opposite of each truth value."""
    if call.value("self").dtype != torch.bool:
        raise UnsupportedError("other than truth values")
    call.end("Not", call.tensor("self"))


def logical(operator: str) -> Builder:
    """and, or and xor of truth values."""

    def build(call: Call) -> None:
        if call.result.dtype != torch.bool:
            raise UnsupportedError("other than truth values")
        call.end(operator, call.tensor("self", torch.bool), call.tensor("other", torch.bool))

    return build


def same(call: Call) -> None:
    """What changes no value: copies, dropout in eval mode."""
    if call.get("train") is True:
        raise UnsupportedError("in train mode")
    call.end("Identity", call.tensor("self" if "self" in call else "input"))


def cast(call: Call) -> None:
    """Another type of number."""
    dtype = call.result.dtype
    if dtype not in ONNX_TYPES:
        raise UnsupportedError(f"the type {dtype}")
    call.end("Cast", call.tensor("self"), to=ONNX_TYPES[dtype])


def size_arithmetic(operator: str) -> Builder:
    """What Python computes from sizes."""

    def build(call: Call) -> None:
        if isinstance(call.result, Tensor):
            raise UnsupportedError("Python's own operator on tensors")
        call.end(operator, *(call.size(call[str(place)]) for place in (0, 1)))

    return build


def read_size(call: Call) -> None:
    """One size of a tensor."""
    axis = call.axis("dim")
    call.end("Shape", call.tensor("self"), start=axis, end=axis + 1)
