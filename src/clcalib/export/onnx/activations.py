"""Activation functions, and bounds on values."""

from __future__ import annotations

from torch import fx

from clcalib.export.onnx.call import Call
from clcalib.export.onnx.writer import UnsupportedError

_BOUNDS = (("min", "min_val"), ("max", "max_val"))  # as the operators call them


def clamp(call: Call) -> None:
    """min(max(x, lower), upper), either of them left out."""
    dtype = call.result.dtype
    bounds = [next((call[name] for name in names if name in call), None) for names in _BOUNDS]
    if any(isinstance(bound, fx.Node) for bound in bounds):
        source = call.tensor("self", dtype)
        for operator, bound in zip(("Max", "Min"), bounds, strict=True):
            source = source if bound is None else call.step(operator, source, call.name_of(bound, dtype))
        call.end("Identity", source)
        return
    call.end("Clip", call.tensor("self", dtype), *("" if b is None else call.name_of(b, dtype) for b in bounds))


def relu6(call: Call) -> None:
    """min(max(x, 0), 6)."""
    call.end("Clip", call.tensor("self"), call.name_of(0.0), call.name_of(6.0))


def silu(call: Call) -> None:
    """x * sigmoid(x)."""
    source = call.tensor("self")
    call.end("Mul", source, call.step("Sigmoid", source))


def gelu(call: Call) -> None:
    """x * Phi(x), or its approximation by tanh."""
    call.end("Gelu", call.tensor("self"), approximate=str(call.get("approximate", "none")))


def leaky_relu(call: Call) -> None:
    """x for x >= 0, else slope * x."""
    call.end("LeakyRelu", call.tensor("self"), alpha=float(call.number("negative_slope")))


def elu(call: Call) -> None:
    """x for x > 0, else alpha * (exp(x) - 1)."""
    if (call.number("scale", 1), call.number("input_scale", 1)) != (1, 1):
        raise UnsupportedError("scale other than 1")
    call.end("Elu", call.tensor("self"), alpha=float(call.number("alpha")))


def prelu(call: Call) -> None:
    """x for x >= 0, else slope * x with a slope for each channel."""
    slope, rank = call.tensor("weight"), call.rank("self")
    if rank > 2 and call.value("weight").numel() > 1:
        slope = call.step("Reshape", slope, call.sizes([-1] + [1] * (rank - 2)))
    call.end("PRelu", call.tensor("self"), slope)


def softplus(call: Call) -> None:
    """log(1 + exp(x))."""
    if call.number("beta", 1) != 1:
        raise UnsupportedError("beta other than 1")
    call.end("Softplus", call.tensor("self"))
