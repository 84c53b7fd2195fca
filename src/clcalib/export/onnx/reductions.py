"""Operators that sum up along axes, and the norms: means, extremes, softmax, batch, layer, group and instance norm."""

from __future__ import annotations

import math

import torch

from clcalib.capture.graph import symbol_of
from clcalib.export.onnx.call import ONNX_TYPES, Builder, Call, fixed
from clcalib.export.onnx.elementwise import binary
from clcalib.export.onnx.movement import end_reshape
from clcalib.export.onnx.writer import UnsupportedError


def reduction(operator: str) -> Builder:
    """Mean, sum, largest or smallest value of some axes, or of all."""

    def build(call: Call) -> None:
        dtype = call.result.dtype
        axes, keep = call.sizes(call.axes("dim")), int(bool(call.get("keepdim", False)))
        call.end(operator, call.tensor("self", dtype), axes, keepdims=keep)

    return build


def mean(call: Call) -> None:
    """The mean of some axes; over all pixels it is a pool, for which runtimes have an integer kernel."""
    rank = call.rank("self")
    if rank < 3 or call.axes("dim") != list(range(2, rank)) or call.result.dtype != call.value("self").dtype:
        reduction("ReduceMean")(call)
    elif call.get("keepdim", False):
        call.end("GlobalAveragePool", call.tensor("self"))
    else:
        pool = call.step("GlobalAveragePool", call.tensor("self"))
        call.end("Flatten", pool, axis=1)
        call.writer.flattened[call.name_of(call.node)] = pool


def extreme(operator: str) -> Builder:
    """The largest or smallest value of an axis and where it is (``max.dim``, ``min.dim``), or of all values."""

    def build(call: Call) -> None:
        if "other" in call:
            binary(operator)(call)
            return
        if "dim" not in call:
            call.end(f"Reduce{operator}", call.tensor("self"), keepdims=0)
            return
        source, axis, keep = call.tensor("self"), call.axis("dim"), int(call["keepdim"])
        values, places = (*call.outputs, "")[:2]
        if values:
            inputs = (source, call.sizes([axis]))
            call.writer.step(f"Reduce{operator}", inputs, (values,), call.place(values), keepdims=keep)
        if places:
            call.writer.step(f"Arg{operator}", (source,), (places,), call.place(places), axis=axis, keepdims=keep)

    return build


def place_of_extreme(operator: str) -> Builder:
    """Where the largest or smallest value of an axis is."""

    def build(call: Call) -> None:
        if call.get("dim") is None:
            raise UnsupportedError("without an axis")
        call.end(operator, call.tensor("self"), axis=call.axis("dim"), keepdims=int(call["keepdim"]))

    return build


def variance(is_root: bool) -> Builder:
    """The mean squared distance from the mean, times n / (n - correction), or its root."""

    def build(call: Call) -> None:
        axes = call.axes("dim")
        count = math.prod(fixed(call.value("self").shape[axis]) for axis in axes)
        correction = call.number("correction", int(call.get("unbiased", True)))
        names, keep = call.sizes(axes), int(bool(call.get("keepdim", False)))
        source = call.tensor("self")
        distance = call.step("Sub", source, call.step("ReduceMean", source, names, keepdims=1))
        total = call.step("ReduceSum", call.step("Mul", distance, distance), names, keepdims=keep)
        share = call.constant(torch.tensor(float(count - correction)))
        if is_root:
            call.end("Sqrt", call.step("Div", total, share))
        else:
            call.end("Div", total, share)

    return build


def vector_norm(call: Call) -> None:
    """The sum of absolute values or the root of the sum of squares."""
    order = call.number("ord", call.number("p", 2))
    operator = {1: "ReduceL1", 2: "ReduceL2"}.get(order)
    if operator is None:
        raise UnsupportedError(f"order {order}")
    axes, keep = call.sizes(call.axes("dim")), int(bool(call.get("keepdim", False)))
    call.end(operator, call.tensor("self"), axes, keepdims=keep)


def softmax(operator: str) -> Builder:
    """Softmax or its logarithm along an axis."""

    def build(call: Call) -> None:
        call.end(operator, call.tensor("self", call.result.dtype), axis=call.axis("dim"))

    return build


def safe_softmax(call: Call) -> None:
    """Softmax that is 0 where all values of a row are minus infinity, as a mask may make them."""
    shares = call.step("Softmax", call.tensor("self", call.result.dtype), axis=call.axis("dim"))
    call.end("Where", call.step("IsNaN", shares), call.name_of(0.0), shares)


def cumulative_sum(call: Call) -> None:
    """Sums from the beginning of an axis to each place."""
    axis = call.constant(torch.tensor(call.axis("dim")))
    call.end("CumSum", call.tensor("self", call.result.dtype), axis)


def top(call: Call) -> None:
    """The largest values of an axis and their places."""
    attributes = {"axis": call.axis("dim"), "largest": int(call["largest"]), "sorted": int(call["sorted"])}
    call.end_several("TopK", call.tensor("self"), call.size(call["k"]), **attributes)


def batch_norm(call: Call) -> None:
    """gamma * (x - mean) / sqrt(variance + epsilon) + beta with fixed statistics."""
    if call.get("training") or "running_mean" not in call or call["running_mean"] is None:
        raise UnsupportedError("without fixed statistics")
    channels = call.value("running_mean").shape[0]
    gamma = call.tensor("weight") or call.constant(torch.ones(channels), "ones")
    beta = call.tensor("bias") or call.constant(torch.zeros(channels), "zeros")
    statistics = call.tensor("running_mean"), call.tensor("running_var")
    call.end("BatchNormalization", call.tensor("input"), gamma, beta, *statistics, epsilon=float(call["eps"]))


def layer_norm(call: Call) -> None:
    """Normalised over the last axes."""
    shape = call.numbers("normalized_shape")
    scale = call.tensor("weight") or call.constant(torch.ones([int(size) for size in shape]), "ones")
    inputs = [call.tensor("input"), scale, call.tensor("bias")]
    call.end_first("LayerNormalization", *inputs, axis=-len(shape), epsilon=float(call["eps"]))


def rms_norm(call: Call) -> None:
    """x / sqrt(mean(x^2) + epsilon) over the last axes."""
    axes = call.sizes(range(-len(call["normalized_shape"]), 0))
    source = call.tensor("input")
    epsilon = call.number("eps", torch.finfo(call.result.dtype).eps)
    mean = call.step("ReduceMean", call.step("Mul", source, source), axes, keepdims=1)
    root = call.step("Sqrt", call.step("Add", mean, call.name_of(float(epsilon))))
    weight = call.tensor("weight")
    if weight:
        call.end("Mul", call.step("Div", source, root), weight)
    else:
        call.end("Div", source, root)


def group_norm(call: Call) -> None:
    """Normalised over groups of channels: an instance norm of the groups, then gain and shift of each channel."""
    groups, value = int(call["num_groups"]), call.value("input")
    rows = call.step("Reshape", call.tensor("input"), call.sizes([0, groups, -1]))
    ends = call.constant(torch.ones(groups), "ones"), call.constant(torch.zeros(groups), "zeros")
    normal = call.step("InstanceNormalization", rows, *ends, epsilon=float(call["eps"]))
    if not call.tensor("weight"):
        end_reshape(call, normal)
        return
    shape = [-1 if symbol_of(size) is not None else int(size) for size in value.shape]
    normal = call.step("Reshape", normal, call.sizes(shape))
    wide = call.sizes([-1] + [1] * (value.dim() - 2))
    gain = call.step("Mul", normal, call.step("Reshape", call.tensor("weight"), wide))
    call.end("Add", gain, call.step("Reshape", call.tensor("bias"), wide))


def instance_norm(call: Call) -> None:
    """Normalised over the pixels of each channel."""
    if not call.get("use_input_stats", True):
        raise UnsupportedError("with fixed statistics")
    channels = call.value("input").shape[1]
    gamma = call.tensor("weight") or call.constant(torch.ones(channels), "ones")
    beta = call.tensor("bias") or call.constant(torch.zeros(channels), "zeros")
    call.end("InstanceNormalization", call.tensor("input"), gamma, beta, epsilon=float(call["eps"]))


def is_number(call: Call) -> None:
    """Not infinite and not NaN."""
    source = call.tensor("self")
    call.end("Not", call.step("Or", call.step("IsNaN", source), call.step("IsInf", source)))


def any_or_all(operator: str) -> Builder:
    """Whether some, or all, truth values along axes are true."""

    def build(call: Call) -> None:
        numbers = call.step("Cast", call.tensor("self"), to=ONNX_TYPES[torch.int32])
        keep = int(bool(call.get("keepdim", False)))
        found = call.step(operator, numbers, call.sizes(call.axes("dim")), keepdims=keep)
        call.end("Cast", found, to=ONNX_TYPES[torch.bool])

    return build
