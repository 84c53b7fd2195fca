"""Why ONNX Runtime left a node in float: the rules of its fusions, read off the quantizers around the node.

The rules were found by experiment (``benchmarks/integer_conditions.py``), on version 1.32.  A reason is a hint at what
to change in the model; whether a node is integer is taken from the optimised graph itself.
"""

from __future__ import annotations

import numpy as np

from clcalib.export.runtimes.graph import DEQUANTIZE, QUANTIZE, Node, QdqGraph

# Operators with an integer kernel, and those that run on codes as they are.
_POSSIBLE = frozenset({
    "Conv", "Gemm", "MatMul", "Add", "Mul", "GlobalAveragePool", "AveragePool", "Concat", "Softmax",
    "Sigmoid", "LeakyRelu", "Where", "MaxPool", "Resize", "Relu", "Clip", "Min", "Max",
})  # fmt: skip
_FLOAT_OUTPUT_ALLOWED = frozenset({"Gemm", "MatMul"})
_VANISHING = frozenset({"Relu", "Clip"})
_ACTIVATIONS = _VANISHING | frozenset({
    "LeakyRelu", "HardSwish", "HardSigmoid", "Sigmoid", "Tanh", "Gelu", "Elu", "Selu", "PRelu", "Mish",
    "Softplus", "Swish",
})  # fmt: skip
_INSTEAD = {
    "Pad": "; pad the codes, in front of DequantizeLinear",
    "ReduceMean": "; a mean over all places can be a GlobalAveragePool",
    "Sub": "; add the negative",
    "HardSwish": "; it can be Add, a quantizer that ends at 6, and Mul",
}
_BYTE = ("uint8", "int8")
_SCALE_TOLERANCE = 1e-4  # relative; the scale of a bias is a product that was rounded to float32


def reason(graph: QdqGraph, node: Node) -> str:
    """Say why a node stayed in float."""
    if not graph.is_quantized:
        return "the model is not quantized"
    if node.operation not in _POSSIBLE:
        return f"there is no integer kernel for {node.operation}{_INSTEAD.get(node.operation, '')}"
    for rule in (_operands, _output, _bias, _factors, _pooling):
        if found := rule(graph, node):
            return found
    return "no known rule: the quantizers around it look complete"


def _operands(graph: QdqGraph, node: Node) -> str:
    weighted = graph.has_weights(node)
    for tensor in graph.operands(node):
        quantizer, is_constant = graph.dequantizer(tensor), graph.is_constant(tensor)
        what = ("weight" if weighted else "constant") if is_constant else "input"
        if quantizer is None:
            return f"{what} is not quantized" + ("" if is_constant else _origin(graph, tensor))
        kind = graph.code_type(quantizer)
        if kind not in _BYTE:
            return f"{what} is {kind}; integer kernels take 8-bit codes"
        if not is_constant and kind == "int8" and _readers(graph, quantizer.inputs[0]) > 1:
            return "int8 input has several readers, which x86 kernels do not take; use uint8 activations"
    return ""


def _origin(graph: QdqGraph, tensor: str) -> str:
    node = graph.producer(tensor)
    return ": it is the model's input" if node is None else f": it comes from {node.operation} in float"


def _readers(graph: QdqGraph, codes: str) -> int:
    """How many nodes read codes, through any of their dequantizers."""
    dequantizers = [node for node in graph.consumers(codes) if node.operation == DEQUANTIZE]
    return sum(len(graph.consumers(node.outputs[0])) for node in dequantizers)


def _output(graph: QdqGraph, node: Node) -> str:
    """What stands between a node and the one quantizer that has to follow it."""
    if node.operation in _VANISHING:
        return _behind_bound(graph, node)
    readers = graph.consumers(node.outputs[0])
    operations = [reader.operation for reader in readers]
    if node.operation in _FLOAT_OUTPUT_ALLOWED and QUANTIZE not in operations:
        return ""
    if len(readers) == 1 and node.outputs[0] not in graph.outputs:
        if operations[0] in _VANISHING:
            return _behind_bound(graph, readers[0])
        if operations[0] in _ACTIVATIONS:
            name = operations[0]
            return f"{name} between it and its quantizer is not fused; quantize in front of {name} too"
    return _quantizer(graph, node.outputs[0], "output")[1]


def _quantizer(graph: QdqGraph, tensor: str, what: str) -> tuple[Node | None, str]:
    """The only reader of a tensor where it is a quantizer to 8 bits, or what is there instead."""
    readers = graph.consumers(tensor)
    if tensor in graph.outputs:
        also = "also " if readers else ""
        return None, f"{what} is {also}an output of the model, in float"
    others = [reader.operation for reader in readers if reader.operation != QUANTIZE]
    if others:
        return None, f"{what} is not quantized: {', '.join(dict.fromkeys(others))} reads it in float"
    if len(readers) != 1:
        return None, f"{what} has {len(readers)} quantizers, and only one can be a part of the kernel"
    kind = graph.code_type(readers[0])
    if kind not in _BYTE:
        return None, f"{what} is quantized to {kind}; integer kernels give 8-bit codes"
    if kind == "int8" and _readers(graph, readers[0].outputs[0]) > 1:
        return None, f"int8 {what} has several readers, which x86 kernels do not give; use uint8 activations"
    return readers[0], ""


def _behind_bound(graph: QdqGraph, bound: Node) -> str:
    """Relu and Clip vanish into the quantizer behind them only if it cuts off at least as much."""
    quantizer, problem = _quantizer(graph, bound.outputs[0], f"output of {bound.operation}")
    scale = None if quantizer is None else graph.scale(quantizer)
    if quantizer is None or scale is None:
        return problem
    limits, zero = np.iinfo(graph.code_type(quantizer)), int(graph.zero_point(quantizer).reshape(-1)[0])
    lowest, highest = ((code - zero) * float(scale.reshape(-1)[0]) for code in (limits.min, limits.max))
    least, most = _bounds(graph, bound)
    cuts = f"{bound.operation} cuts at"
    if lowest < least - _SCALE_TOLERANCE * abs(lowest):
        return f"{cuts} {least:g} and the quantizer behind it at {lowest:.3g}; give it zero point {limits.min}"
    if highest > most * (1 + _SCALE_TOLERANCE):
        return f"{cuts} {most:g} and the quantizer behind it at {highest:.3g}; clip the codes behind it instead"
    return ""


def _bounds(graph: QdqGraph, bound: Node) -> tuple[float, float]:
    if bound.operation == "Relu":
        return 0.0, float("inf")
    values = [bound.attributes.get("min", -float("inf")), bound.attributes.get("max", float("inf"))]
    for place, name in enumerate(bound.inputs[1:3]):
        constant = graph.constant(name) if name else None
        values[place] = values[place] if constant is None else float(constant.reshape(-1)[0])
    return float(values[0]), float(values[1])


def _bias(graph: QdqGraph, node: Node) -> str:
    if node.operation not in ("Conv", "Gemm") or len(node.inputs) < 3 or not node.inputs[2]:
        return ""
    quantizer = graph.dequantizer(node.inputs[2])
    if quantizer is None:
        return "bias is in float; with an output in float it must be int32 with scale input x weight"
    scales = [graph.scale(quantizer)]
    scales += [graph.scale(each) for name in node.inputs[:2] if (each := graph.dequantizer(name)) is not None]
    if len(scales) == 3 and all(scale is not None for scale in scales):
        own, read, weight = (np.asarray(scale, np.float64).reshape(-1) for scale in scales)
        if not np.allclose(own, read * weight, rtol=_SCALE_TOLERANCE, atol=0):
            return "scale of the bias is not input scale x weight scale"
    return ""


def _factors(graph: QdqGraph, node: Node) -> str:
    for name in ("alpha", "beta"):
        if node.operation == "Gemm" and node.attributes.get(name, 1.0) != 1.0:
            return f"Gemm has {name} {node.attributes[name]:g}, and only 1 is fused"
    mode = node.attributes.get("mode", b"nearest")
    if node.operation == "Resize" and mode != b"nearest":
        return f"there is no integer kernel for Resize by {mode.decode()} interpolation"
    behind = graph.consumers(node.outputs[0])
    if node.operation == "MatMul" and [each.operation for each in behind] == ["Add"]:
        return "MatMul and Add become a Gemm, whose float bias keeps it in float; quantize behind Add"
    return ""


def _pooling(graph: QdqGraph, node: Node) -> str:
    """Operators that run on the codes of their input need the same quantizer behind them."""
    if node.operation not in ("MaxPool", "Resize"):
        return ""
    before, behind = graph.dequantizer(node.inputs[0]), graph.consumers(node.outputs[0])
    if before is None or len(behind) != 1 or behind[0].operation != QUANTIZE:
        return ""
    same = np.array_equal(graph.zero_point(before), graph.zero_point(behind[0]))
    scales = graph.scale(before), graph.scale(behind[0])
    if same and all(scale is not None for scale in scales) and np.array_equal(*scales):  # type: ignore[arg-type]
        return ""
    return "the quantizers before and behind it differ; it runs on codes, so they must be the same"
