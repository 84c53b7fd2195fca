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
    mode = node.attributes.get("mode", b"nearest")
    if node.operation == "Resize" and mode != b"nearest":
        return f"there is no integer kernel for Resize by {mode.decode()} interpolation"
    return "no known rule: the quantizers around it look complete"


def _origin(graph: QdqGraph, tensor: str) -> str:
    node = graph.producer(tensor)
    return ": it is the model's input" if node is None else f": it comes from {node.operation} in float"
