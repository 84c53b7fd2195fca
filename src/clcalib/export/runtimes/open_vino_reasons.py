"""Why OpenVINO left a node in float, read off the quantizers around the node.

The rules were found by experiment (``benchmarks/integer_conditions.py``), on version 2026.4.
"""

from __future__ import annotations

from clcalib.export.runtimes.graph import Node, QdqGraph

_POSSIBLE = frozenset({
    "Conv", "Gemm", "MatMul", "Add", "Mul", "GlobalAveragePool", "AveragePool", "ReduceMean", "Concat",
    "MaxPool", "Resize", "Relu", "Clip", "Min", "Max",
})  # fmt: skip
_BYTE = ("uint8", "int8")


def reason(graph: QdqGraph, node: Node) -> str:
    """Say why a node stayed in float."""
    if not graph.is_quantized:
        return "the model is not quantized"
    if node.operation not in _POSSIBLE:
        return f"there is no integer kernel for {node.operation}"
    for tensor in graph.operands(node):
        quantizer, is_constant = graph.dequantizer(tensor), graph.is_constant(tensor)
        what = ("weight" if graph.has_weights(node) else "constant") if is_constant else "input"
        if quantizer is None:
            return f"{what} is not quantized" + ("" if is_constant else _origin(graph, tensor))
        kind = graph.code_type(quantizer)
        if kind not in _BYTE:
            return f"{what} is {kind}; integer kernels take 8-bit codes"
        if what == "weight" and (kind != "int8" or bool(graph.zero_point(quantizer).any())):
            return "weight has zero points; integer kernels take symmetric int8 weights"
    if found := _of_two(graph, node):
        return found
    mode = node.attributes.get("mode", b"nearest")
    if node.operation == "Resize" and mode != b"nearest":
        return f"there is no integer kernel for Resize by {mode.decode()} interpolation"
    return "no known rule: the quantizers around it look complete"


def _of_two(graph: QdqGraph, node: Node) -> str:
    """What only operations of two tensors ask for."""
    operands = graph.operands(node)
    if node.operation in ("Add", "Mul") and any(graph.is_constant(tensor) for tensor in operands):
        return f"{node.operation} with a constant is done in float"
    quantizers = [each for tensor in operands if (each := graph.dequantizer(tensor)) is not None]
    has_zero_point = any(bool(graph.zero_point(each).any()) for each in quantizers)
    if node.operation == "Mul" and has_zero_point:
        return "an input has a zero point; it is taken off in integers, and the product is one of floats"
    is_product = node.operation == "MatMul" and not graph.has_weights(node)
    if is_product and (has_zero_point or graph.code_type(quantizers[-1]) != "int8"):
        return "a product of activations takes int8 on the right and no zero points"
    return ""


def _origin(graph: QdqGraph, tensor: str) -> str:
    node = graph.producer(tensor)
    return ": it is the model's input" if node is None else f": it comes from {node.operation} in float"
