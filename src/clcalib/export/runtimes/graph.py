"""An ONNX graph with its quantizers: who makes a tensor, who reads it, and with which codes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clcalib.export.runtimes.model_file import OnnxModel, package

QUANTIZE, DEQUANTIZE = "QuantizeLinear", "DequantizeLinear"
# What moves or renames values, or computes shapes: no arithmetic that a width would matter for.
MOVING = frozenset({
    "Identity", "Constant", "ConstantOfShape", "Shape", "Size", "Reshape", "Flatten", "Squeeze", "Unsqueeze",
    "Transpose", "Slice", "Split", "Gather", "Expand", "Tile", "Cast", "Dropout", "DepthToSpace",
    "SpaceToDepth", "Range",
})  # fmt: skip
WEIGHTED = frozenset({
    "Conv", "ConvTranspose", "Gemm", "MatMul", "QLinearConv", "QGemm", "QLinearMatMul", "ConvInteger",
    "MatMulInteger",
})  # fmt: skip
# Where the operands of an integer operator stand; the others are scales and zero points.
_OPERANDS = {"QLinearConv": (0, 3), "QLinearMatMul": (0, 3), "QGemm": (0, 3)}


@dataclass(frozen=True)
class Node:
    """One node; ``index`` is its place in the file."""

    index: int
    name: str
    operation: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: dict[str, Any]

    @property
    def title(self) -> str:
        """What a reader finds it by."""
        return self.name or self.outputs[0]


class QdqGraph:
    """The graph of a model, indexed by tensor."""

    def __init__(self, model: OnnxModel) -> None:
        onnx = package("onnx")
        graph = model.proto.graph
        self.nodes = tuple(_node(index, node, onnx) for index, node in enumerate(graph.node))
        self.outputs = frozenset(value.name for value in graph.output)
        self._initializers = {tensor.name: tensor for tensor in graph.initializer}
        self._producers = {name: node for node in self.nodes for name in node.outputs if name}
        self._consumers: dict[str, list[Node]] = {}
        for node in self.nodes:
            for name in dict.fromkeys(node.inputs):
                self._consumers.setdefault(name, []).append(node)
        self._constants = set(self._initializers)
        for node in self.nodes:  # in the order in which they run, as ONNX wants it
            if all(name in self._constants for name in node.inputs if name):
                self._constants.update(node.outputs)
        self._kinds = _element_types(model.proto, onnx)
        self._to_array = onnx.numpy_helper.to_array

    @property
    def is_quantized(self) -> bool:
        """Whether there is any quantizer, or an operator that takes integers by itself."""
        return any(node.operation in (QUANTIZE, DEQUANTIZE) or node.operation.startswith("QL") for node in self.nodes)

    def producer(self, tensor: str) -> Node | None:
        """The node that makes a tensor; None for an input or a constant in the file."""
        return self._producers.get(tensor)

    def consumers(self, tensor: str) -> list[Node]:
        """The nodes that read a tensor."""
        return self._consumers.get(tensor, [])

    def dequantizer(self, tensor: str) -> Node | None:
        """The DequantizeLinear that makes a tensor, or None."""
        node = self.producer(tensor)
        return node if node is not None and node.operation == DEQUANTIZE else None

    def is_constant(self, tensor: str) -> bool:
        """Whether a tensor depends on no input of the model."""
        return tensor in self._constants

    def constant(self, tensor: str) -> NDArray[Any] | None:
        """The value of a constant that stands in the file; None for anything else."""
        if tensor in self._initializers:
            found = self._initializers[tensor]
            # An external tensor's value is not there; only large ones are external, so its type is what is asked for.
            return None if found.data_location == 1 else self._to_array(found)
        node = self.producer(tensor)
        value = node.attributes.get("value") if node is not None and node.operation == "Constant" else None
        return None if value is None else self._to_array(value)

    def scale(self, quantizer: Node) -> NDArray[Any] | None:
        """The scale of a QuantizeLinear or DequantizeLinear."""
        return self.constant(quantizer.inputs[1])

    def zero_point(self, quantizer: Node) -> NDArray[Any]:
        """The zero point of a QuantizeLinear or DequantizeLinear; 0 of uint8 where there is none."""
        name = quantizer.inputs[2] if len(quantizer.inputs) > 2 else ""
        value = self.constant(name) if name else None
        return np.zeros((), np.uint8) if value is None else value

    def code_type(self, quantizer: Node) -> str:
        """The integer type of a quantizer's codes, such as ``uint8``."""
        if len(quantizer.inputs) > 2 and quantizer.inputs[2]:
            return str(self.zero_point(quantizer).dtype)
        if quantizer.operation == QUANTIZE:
            return "uint8"
        codes = self.constant(quantizer.inputs[0])
        return str(codes.dtype) if codes is not None else "uint8"

    def operands(self, node: Node) -> tuple[str, ...]:
        """The tensors that a node computes with, without biases, scales and bounds."""
        if node.operation == "Concat":
            return node.inputs
        if node.operation in _OPERANDS:
            return tuple(node.inputs[place] for place in _OPERANDS[node.operation])
        two = ("Conv", "ConvTranspose", "Gemm", "MatMul", "Add", "Sub", "Mul", "Div")
        return node.inputs[:2] if node.operation in two else node.inputs[:1]

    def has_weights(self, node: Node) -> bool:
        """Whether a node multiplies by weights of the model."""
        return node.operation in WEIGHTED and any(self.is_constant(name) for name in self.operands(node))

    def operations(self) -> Iterator[Node]:
        """The nodes that compute with the values of images: no quantizers, no shapes, nothing constant."""
        for node in self.nodes:
            is_float = self._kinds.get(node.outputs[0], "FLOAT") in ("FLOAT", "FLOAT16", "UINT8", "INT8")
            if node.operation in MOVING or node.operation in (QUANTIZE, DEQUANTIZE) or not is_float:
                continue
            if not self.is_constant(node.outputs[0]):
                yield node


def _node(index: int, node: Any, onnx: Any) -> Node:
    attributes = {each.name: onnx.helper.get_attribute_value(each) for each in node.attribute}
    return Node(index, node.name, node.op_type, tuple(node.input), tuple(node.output), attributes)


def _element_types(proto: Any, onnx: Any) -> dict[str, str]:
    """The element type of each tensor that onnx can tell; operators of other domains are unknown to it."""
    try:
        graph = onnx.shape_inference.infer_shapes(proto).graph
    except Exception:  # inference of an unusual model fails in many ways; without it all tensors count as float
        graph = proto.graph
    name = onnx.TensorProto.DataType.Name
    return {value.name: name(value.type.tensor_type.elem_type) for value in (*graph.value_info, *graph.output)}
