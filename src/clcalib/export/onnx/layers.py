"""Layers with weights and matrix products: Conv, ConvTranspose, Gemm, MatMul, Einsum."""

from __future__ import annotations

import math

import torch
from torch import Tensor, fx

from clcalib.capture.graph import layer_name
from clcalib.export.onnx.call import Call
from clcalib.export.onnx.codes import scale_behind, with_zero_channels
from clcalib.export.onnx.movement import zeros_around
from clcalib.export.onnx.quantizers import LARGEST_BIAS_CODE, is_symmetric, write_bias, write_weight
from clcalib.export.onnx.writer import UnsupportedError
from clcalib.quant.insert import tensor_at
from clcalib.quant.modules import IntegerWeight
from clcalib.quant.spec import PerChannel, PerTensor

_MARGIN = 1.001  # for what dividing rounds
_LARGEST_FILLED = 25  # pixels of a kernel up to which channels of zeros cost less than they gain (docs/runtimes.md)


def convolution(call: Call) -> None:
    """``conv1d`` to ``conv3d``, ``conv_transpose1d`` to ``conv_transpose3d`` and ``convolution``."""
    operator = str(call.node.target)
    is_transposed = bool(call.get("transposed", "conv_transpose" in operator))
    weight_shape = call.value("weight").shape
    rank = len(weight_shape) - 2
    if call.rank("input") != rank + 2:
        raise UnsupportedError("an input without a batch dimension")
    stride, dilation = call.numbers("stride", rank), call.numbers("dilation", rank)
    kernel, pads = [int(size) for size in weight_shape[2:]], _pads(call, rank, dilation)
    if not is_transposed:
        call, pads = _with_pad_in_front(call, pads, [d * (size - 1) for d, size in zip(dilation, kernel, strict=True)])
    # What the format takes where nothing is said need not be said; the weight has the kernel's shape.
    attributes: dict[str, object] = {} if call.writer.rules.is_compact else {"kernel_shape": kernel}
    attributes |= {} if set(stride) == {1} else {"strides": stride}
    attributes |= {} if set(dilation) == {1} else {"dilations": dilation}
    attributes |= {} if call["groups"] == 1 else {"group": int(call["groups"])}
    attributes |= {"pads": pads} if any(pads) else {}
    if is_transposed and any(call.numbers("output_padding", rank)):
        attributes["output_padding"] = call.numbers("output_padding", rank)
    missing = 0 if is_transposed else _missing_channels(call, kernel)
    weight, bias = _weight(call, "weight", zero_channels=missing), _bias(call, can_be_integer=not is_transposed)
    if is_transposed and bias and call.writer.rules.are_codes_integer:
        _end_transposed(call, weight, bias, rank, **attributes)
        return
    source = with_zero_channels(call, "input", missing) if missing else call.tensor("input")
    _end_layer(call, "ConvTranspose" if is_transposed else "Conv", source, weight, bias, **attributes)


def _with_pad_in_front(call: Call, pads: list[int], reach: list[int]) -> tuple[Call, list[int]]:
    """The layer as it reads what a pad with zeros in front of it reads, which its kernel then pads.

    Args:
        call: the layer.
        pads: its own, before and behind each axis.
        reach: pixels of an axis that the kernel covers, less one; a wider pad stays an operator.
    """
    node = call["input"]
    around = zeros_around(call.at(node)) if node.op == "call_function" else None
    if around is None or any(side[0] or side[1] for side in around):
        return call, pads
    more = [*around[0][2:], *around[1][2:]]
    sums = [own + other for own, other in zip(pads, more, strict=True)]
    if min(more) < 0 or any(total > limit for total, limit in zip(sums, reach * 2, strict=True)):
        return call, pads
    (source, *_) = node.all_input_nodes
    return call.reading("input", source), sums


def _missing_channels(call: Call, kernel: list[int]) -> int:
    """How many channels of zeros a convolution of images needs for the kernel that takes a multiple of some number."""
    rules, channels = call.writer.rules, int(call.value("weight").shape[1])
    weight = _module_at(call, call["weight"])
    is_small = 1 < math.prod(kernel) <= _LARGEST_FILLED
    if channels >= rules.channel_multiple or call["groups"] != 1 or not is_small:
        return 0
    if scale_behind(call, "input") is None or not isinstance(weight, IntegerWeight) or not is_symmetric(weight, rules):
        return 0
    return rules.channel_multiple - channels


def _end_transposed(call: Call, weight: str, bias: str, rank: int, **attributes: object) -> None:
    """The bias as an addition: ONNX Runtime would quantize it by itself, and has no integer kernel for the layer."""
    name = _layer(call)
    product = call.writer.reserve(f"{call.node.name}/ConvTranspose")
    inputs = (call.tensor("input"), weight)
    call.writer.layers[name] = call.writer.step("ConvTranspose", inputs, (product,), name, **attributes)
    call.end("Add", product, call.step("Reshape", bias, call.sizes([1, -1] + [1] * rank)))


def _pads(call: Call, rank: int, dilation: list[int]) -> list[int]:
    padding = call["padding"]
    if padding == "valid":
        return [0] * (2 * rank)
    if padding == "same":
        totals = [d * (int(size) - 1) for d, size in zip(dilation, call.value("weight").shape[2:], strict=True)]
        return [total // 2 for total in totals] + [total - total // 2 for total in totals]
    return call.numbers("padding", rank) * 2


def linear(call: Call) -> None:
    """Gemm for rows of features, which runtimes have an integer kernel for; MatMul and Add for more dimensions."""
    if call.value("weight").dim() != 2:
        raise UnsupportedError("a weight that is no matrix")
    if call.rank("input") == 2:
        bias = _bias(call, can_be_integer=True)
        _end_layer(call, "Gemm", call.tensor("input"), _weight(call, "weight"), bias, transB=1)
        return
    weight, bias = _weight(call, "weight", is_transposed=True), _bias(call, can_be_integer=False)
    if not bias:
        _end_layer(call, "MatMul", call.tensor("input"), weight)
        return
    call.end("Add", _inner_product(call, call.tensor("input"), weight), bias)


def product(call: Call) -> None:
    """``matmul``, ``mm`` and ``bmm``."""
    _end_layer(call, "MatMul", call.tensor("self"), call.tensor("other" if "other" in call else "mat2"))


def product_and_sum(call: Call) -> None:
    """beta * self + alpha * (a @ b): ``addmm`` and ``baddbmm``."""
    factors = ("mat1", "mat2") if "mat1" in call else ("batch1", "batch2")
    value = _inner_product(call, *(call.tensor(name) for name in factors))
    alpha, beta, addend = call.number("alpha", 1), call.number("beta", 1), call.tensor("self")
    value = value if alpha == 1 else call.step("Mul", value, call.name_of(float(alpha)))
    addend = addend if beta == 1 else call.step("Mul", addend, call.name_of(float(beta)))
    call.end("Add", value, addend)


def einsum(call: Call) -> None:
    """The equation as it stands."""
    _end_layer(call, "Einsum", *(call.name_of(factor) for factor in call["tensors"]), equation=str(call["equation"]))


def _end_layer(call: Call, operator: str, *inputs: str, **attributes: object) -> None:
    name = _layer(call)
    call.writer.layers[name] = call.end(operator, *inputs, name=name, **attributes)


def _inner_product(call: Call, left: str, right: str) -> str:
    """The product of a layer that ends in an addition."""
    name = _layer(call)
    output = call.writer.reserve(f"{call.node.name}/MatMul")
    call.writer.layers[name] = call.writer.step("MatMul", (left, right), (output,), name)
    return output


def _layer(call: Call) -> str:
    """The name of the layer, or of the product of activations; the second call of a layer is ``name#2``."""
    if call.node.name in call.writer.products:
        return call.writer.products[call.node.name]
    weight = call.get("weight")
    known = call.writer.layer_names.get(str(weight.target)) if isinstance(weight, fx.Node) else None
    name = known or (call.node.name if weight is None else layer_name(call.node))
    count = sum(layer.partition("#")[0] == name for layer in call.writer.layers)
    return f"{name}#{count + 1}" if count else name


def _weight(call: Call, argument: str, is_transposed: bool = False, zero_channels: int = 0) -> str:
    node = call[argument]
    module = _module_at(call, node)
    if isinstance(module, IntegerWeight):
        return write_weight(call, str(node.target), module, is_transposed, zero_channels)
    if not is_transposed:
        return call.tensor(argument)
    if isinstance(node, fx.Node) and node.op == "get_attr":
        matrix = tensor_at(call.writer.module, str(node.target)).mT
        return call.writer.constant(f"{node.target}/transposed", matrix)
    return call.step("Transpose", call.tensor(argument), perm=[1, 0])


def _bias(call: Call, can_be_integer: bool) -> str:
    node = call.get("bias")
    if node is None:
        return ""
    if can_be_integer and call.writer.rules.is_bias_integer:
        values = _integer_bias(call)
        if values is not None:
            written = write_bias(call, _layer(call), *values)
            if written is not None:
                return written
            _note_least_scale(call, *values[:2])
    return call.tensor("bias")


def _note_least_scale(call: Call, bias: Tensor, input_scale: Tensor) -> None:
    """Weights next to nothing have a scale in whose steps the bias is too large a number."""
    name, known = str(call["weight"].target), call.writer.least_scales
    least = bias.abs() / (input_scale.reshape(()) * LARGEST_BIAS_CODE) * _MARGIN
    known[name] = torch.maximum(least, known[name]) if name in known else least


def _integer_bias(call: Call) -> tuple[Tensor, Tensor, Tensor] | None:
    """Bias, scale of the input and scales of the weight, where an integer kernel may do the layer; else None."""
    bias, scale, weight = call["bias"], scale_behind(call, "input"), _module_at(call, call["weight"])
    if scale is None or not isinstance(weight, IntegerWeight):
        return None
    if not isinstance(bias, fx.Node) or bias.op != "get_attr":
        return None
    if weight.spec.granularity not in (PerTensor(), PerChannel(0)):
        return None
    return tensor_at(call.writer.module, str(bias.target)), scale, weight.scale


def _module_at(call: Call, node: object) -> torch.nn.Module | None:
    """The module that a ``call_module`` node calls."""
    if isinstance(node, fx.Node) and node.op == "call_module":
        return call.writer.module.get_submodule(str(node.target))
    return None
