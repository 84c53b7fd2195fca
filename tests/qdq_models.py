"""Tiny quantized ONNX models, built by hand: what an exporter would write, one pattern at a time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

STEP = 0.05  # scale of images
WIDE = 0.1  # scale of what layers give
INPUT = "image"
Values = Any


class QdqBuilder:
    """A graph that grows node by node; each method returns the name of the tensor that it makes.

    Args:
        shape: of one image.
        opset: version of the standard operators.
        batch: a fixed one; by default any goes.
    """

    def __init__(self, shape: Sequence[int] = (8, 8, 8), opset: int = 21, batch: int | None = None) -> None:
        self.shape: list[Any] = ["batch" if batch is None else batch, *shape]
        self.opset = opset
        self.nodes: list[Any] = []
        self.constants: list[Any] = []
        self._random = np.random.default_rng(0)

    def constant(self, values: Values) -> str:
        name = f"constant_{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.asarray(values), name))
        return name

    def codes_of_4_bits(self, values: Values, kind: int = TensorProto.INT4) -> str:
        values, name = np.asarray(values), f"constant_{len(self.constants)}"
        self.constants.append(helper.make_tensor(name, kind, values.shape, values.flatten().tolist()))
        return name

    def add(self, operation: str, *inputs: str, outputs: int = 1, **attributes: Any) -> str:
        name = f"{operation.lower()}_{len(self.nodes)}"
        names = [name if outputs == 1 else f"{name}_{place}" for place in range(outputs)]
        self.nodes.append(helper.make_node(operation, inputs, names, name=f"{name}_node", **attributes))
        return names[0]

    def quantize(self, tensor: str, scale: float = WIDE, zero: int = 128, kind: type = np.uint8) -> str:
        return self.add("QuantizeLinear", tensor, self.constant(np.float32(scale)), self.constant(kind(zero)))

    def dequantize(self, codes: str, scale: float = WIDE, zero: int = 128, kind: type = np.uint8) -> str:
        return self.add("DequantizeLinear", codes, self.constant(np.float32(scale)), self.constant(kind(zero)))

    def quantized(self, tensor: str, scale: float = WIDE, zero: int = 128, kind: type = np.uint8) -> str:
        """Quantize and dequantize."""
        return self.dequantize(self.quantize(tensor, scale, zero, kind), scale, zero, kind)

    def image(self, kind: type = np.uint8) -> str:
        return self.quantized(INPUT, STEP, 128 if kind is np.uint8 else 0, kind)

    def weight(self, shape: Sequence[int], *, axis: int = 0, zero: Values = 0, kind: type = np.int8) -> tuple[str, Any]:
        """Random weights per channel, dequantized, and their scales."""
        count, limits = shape[axis], np.iinfo(kind)
        scales = np.linspace(0.005, 0.01, count, dtype=np.float32)
        codes = self._random.integers(limits.min, limits.max + 1, tuple(shape)).astype(kind)
        zeros = np.broadcast_to(np.asarray(zero, kind), (count,)).copy()
        names = (self.constant(codes), self.constant(scales), self.constant(zeros))
        return self.add("DequantizeLinear", *names, axis=axis), scales

    def bias(self, scales: Any) -> str:
        """Random int32 biases with these scales."""
        codes = self._random.integers(-500, 500, len(scales)).astype(np.int32)
        zeros = np.zeros(len(scales), np.int32)
        names = (self.constant(codes), self.constant(scales.astype(np.float32)), self.constant(zeros))
        return self.add("DequantizeLinear", *names, axis=0)

    def conv(
        self, tensor: str, *, scale: float = STEP, out: int = 8, channels: int = 8, group: int = 1, kernel: int = 3,
        bias: str = "int32", **weights: Any,
    ) -> str:  # fmt: skip
        """A convolution; ``bias`` is int32, float, none or "other scale"."""
        weight, scales = self.weight((out, channels // group, kernel, kernel), **weights)
        return self.add(
            "Conv", tensor, weight, *self._bias(bias, scales * np.float32(scale)), pads=[kernel // 2] * 4, group=group
        )

    def gemm(self, tensor: str, *, scale: float = STEP, out: int = 10, bias: str = "int32", **more: Any) -> str:
        """A linear layer of 64 inputs."""
        alpha = more.pop("alpha", 1.0)
        channels = more.pop("channels", 64)
        weight, scales = self.weight((out, channels), **more)
        return self.add("Gemm", tensor, weight, *self._bias(bias, scales * np.float32(scale)), transB=1, alpha=alpha)

    def matmul(self, tensor: str, *, channels: int = 64, **weights: Any) -> str:
        return self.add("MatMul", tensor, self.weight((channels, 10), axis=1, **weights)[0])

    def bytes(self, *outputs: str) -> bytes:
        """The model as a file holds it."""
        images = helper.make_tensor_value_info(INPUT, TensorProto.FLOAT, self.shape)
        results = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs]
        graph = helper.make_graph(self.nodes, "graph", [images], results, self.constants)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", self.opset)], ir_version=10)
        return bytes(onnx.shape_inference.infer_shapes(model).SerializeToString())

    def _bias(self, kind: str, scales: Any) -> list[str]:
        if kind == "float":
            return [self.constant(np.ones(len(scales), np.float32))]
        factors = {"none": (), "int32": (1.0,), "other scale": (3.0,)}[kind]
        return [self.bias(scales * factor) for factor in factors]


def residual_network(*, is_quantized: bool = True, size: int = 8) -> bytes:
    """A network (N, 3, size, size) -> (N, 10) with a residual block; the same arithmetic in float, or quantized."""
    make = QdqBuilder((3, size, size))
    same = make.quantized if is_quantized else lambda tensor, *_: tensor
    first = same(make.add("Relu", _conv(make, same(INPUT, STEP), 3, STEP, is_quantized)), WIDE, 0)
    second = same(_conv(make, first, 8, WIDE, is_quantized), WIDE)
    joined = same(make.add("Relu", make.add("Add", second, first)), WIDE, 0)
    pooled = make.add("Flatten", same(make.add("GlobalAveragePool", joined), STEP, 0))
    layer = make.gemm if is_quantized else _float_gemm(make)
    return make.bytes(layer(same(pooled, STEP, 0), channels=8))


def _conv(make: QdqBuilder, tensor: str, channels: int, scale: float, is_quantized: bool) -> str:
    if is_quantized:
        return make.conv(tensor, channels=channels, scale=scale)
    weight = np.random.default_rng(channels).normal(0, 0.3, (8, channels, 3, 3)).astype(np.float32)
    bias = make.constant(np.zeros(8, np.float32))
    return make.add("Conv", tensor, make.constant(weight), bias, pads=[1] * 4)


def _float_gemm(make: QdqBuilder) -> Any:
    weight = np.random.default_rng(0).normal(0, 0.3, (10, 8)).astype(np.float32)
    bias = np.zeros(10, np.float32)
    return lambda tensor, channels: make.add("Gemm", tensor, make.constant(weight), make.constant(bias), transB=1)
