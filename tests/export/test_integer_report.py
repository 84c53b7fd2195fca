"""The report on kernels: what is integer, what is not, and why."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from tests.qdq_models import INPUT, STEP, WIDE, QdqBuilder, residual_network

from clcalib.export.runtimes import RUNTIMES, LayerCounts, LayerReport, integer_report

Make = Callable[[QdqBuilder, str], str]


def relu(zero: int) -> Make:
    return lambda make, x: make.quantized(make.add("Relu", make.conv(x)), WIDE, zero)


def clip_in_front(make: QdqBuilder, x: str) -> str:
    bounds = (make.constant(np.float32(0)), make.constant(np.float32(1.5)))
    return make.quantized(make.add("Clip", make.conv(x), *bounds), WIDE, 0)


def clip_of_codes(make: QdqBuilder, x: str) -> str:
    bounds = (make.constant(np.uint8(0)), make.constant(np.uint8(15)))
    return make.dequantize(make.add("Clip", make.quantize(make.conv(x), WIDE, 0), *bounds), WIDE, 0)


def two_quantizers(make: QdqBuilder, x: str) -> str:
    y = make.conv(x)
    return make.quantized(make.add("Add", make.quantized(y), make.quantized(y, 0.07)))


def signed(make: QdqBuilder, x: str) -> str:
    y = make.quantized(make.conv(make.image(np.int8)), WIDE, 0, np.int8)
    z = make.quantized(make.conv(y, scale=WIDE), WIDE, 0, np.int8)
    return make.quantized(make.add("Add", z, y), WIDE, 0, np.int8)


def four_bits(make: QdqBuilder, x: str) -> str:
    weight, zero = make.codes_of_4_bits(np.zeros((8, 8, 1, 1), int)), make.codes_of_4_bits(np.zeros(8, int))
    scales = make.constant(np.full(8, 0.1, np.float32))
    return make.quantized(make.add("Conv", x, make.add("DequantizeLinear", weight, scales, zero, axis=0)))


def product(zero: int, kind: type) -> Make:
    """Of two activations with these codes."""

    def build(make: QdqBuilder, x: str) -> str:
        right = make.add("Transpose", INPUT, perm=[0, 1, 3, 2])
        operands = (make.quantized(tensor, STEP, zero, kind) for tensor in (INPUT, right))
        return make.quantized(make.add("MatMul", *operands))

    return build


def concat(make: QdqBuilder, x: str) -> str:
    return make.quantized(make.conv(make.add("Concat", x, x, axis=1), channels=16))


# pattern -> (what is built, the kernel of its first operation, a part of the reason; "" where it is integer)
ON_ONNX_RUNTIME: dict[str, tuple[Make, str, str]] = {
    "conv": (lambda m, x: m.quantized(m.conv(x)), "QLinearConv", ""),
    "zero points": (lambda m, x: m.quantized(m.conv(x, zero=np.arange(8))), "QLinearConv", ""),
    "float output": (lambda m, x: m.conv(x), "Conv", "output is an output of the model, in float"),
    "float input": (lambda m, x: m.quantized(m.conv(INPUT)), "Conv", "input is not quantized: it is the model's input"),
    "float reader": (lambda m, x: m.quantized(m.add("Add", m.conv(x), x)), "Conv", "not quantized: Add reads it"),
    "bias": (lambda m, x: m.quantized(m.conv(x, bias="other scale")), "Conv", "scale of the bias is not input scale"),
    "relu": (relu(0), "QLinearConv", ""),
    "relu 10": (relu(10), "Conv", "Relu cuts at 0 and the quantizer behind it at -1; give it zero point 0"),
    "clip": (clip_in_front, "Conv", "Clip cuts at 1.5 and the quantizer behind it at 25.5; clip the codes"),
    "clip of codes": (clip_of_codes, "QLinearConv", ""),
    "hardswish": (
        lambda m, x: m.quantized(m.add("HardSwish", m.conv(x))),
        "Conv",
        "HardSwish between it and its quantizer is not fused; quantize in front of HardSwish too",
    ),
    "two quantizers": (two_quantizers, "Conv", "output has 2 quantizers"),
    "int8": (signed, "Conv", "int8 output has several readers"),
    "int4": (four_bits, "Conv", "weight is int4; integer kernels take 8-bit codes"),
    "concat": (concat, "Concat", "output is not quantized: Conv reads it"),
    "mean": (lambda m, x: m.quantized(m.add("ReduceMean", x)), "ReduceMean", "no integer kernel for ReduceMean"),
    "pool": (lambda m, x: m.quantized(m.add("GlobalAveragePool", x)), "QLinearGlobalAveragePool", ""),
    "max pool": (
        lambda m, x: m.quantized(m.add("MaxPool", x, kernel_shape=[2, 2]), STEP),
        "MaxPool",
        "",
    ),
    "max pool, other scale": (
        lambda m, x: m.quantized(m.add("MaxPool", x, kernel_shape=[2, 2])),
        "MaxPool",
        "the quantizers before and behind it differ",
    ),
}
ON_LINEAR: dict[str, tuple[Make, str, str]] = {
    "gemm": (lambda m, x: m.gemm(x), "QGemm", ""),
    "float bias": (lambda m, x: m.gemm(x, bias="float"), "Gemm", "bias is in float"),
    "alpha": (lambda m, x: m.quantized(m.gemm(x, alpha=0.5)), "Gemm", "Gemm has alpha 0.5"),
    "matmul": (lambda m, x: m.matmul(x), "MatMulIntegerToFloat", ""),
    "matmul, quantized": (lambda m, x: m.quantized(m.matmul(x)), "QLinearMatMul", ""),
    "matmul and bias": (
        lambda m, x: m.add("Add", m.matmul(x), m.constant(np.ones(10, np.float32))),
        "Gemm",
        "MatMul and Add become a Gemm",
    ),
}
ON_OPENVINO: dict[str, tuple[Make, str, str]] = {
    "conv": (lambda m, x: m.conv(x), "Convolution", ""),
    "zero points": (lambda m, x: m.quantized(m.conv(x, zero=3)), "Convolution", "weight has zero points"),
    "uint8": (lambda m, x: m.quantized(m.conv(x, zero=128, kind=np.uint8)), "Convolution", "weight has zero points"),
    "float input": (lambda m, x: m.quantized(m.conv(INPUT)), "Convolution", "input is not quantized"),
    "relu 10": (relu(10), "Convolution", ""),
    "two quantizers": (two_quantizers, "Convolution", ""),
    "mul": (lambda m, x: m.quantized(m.add("Mul", x, m.quantized(INPUT))), "Eltwise", "an input has a zero point"),
    "product": (product(0, np.int8), "MatMul", ""),
    "product, uint8": (product(100, np.uint8), "MatMul", "int8 on the right and no zero points"),
    "softmax": (lambda m, x: m.quantized(m.add("Softmax", x, axis=1)), "Softmax", "no integer kernel for Softmax"),
    "layer norm": (
        lambda m, x: m.quantized(m.add("LayerNormalization", x, m.constant(np.ones(8, np.float32)))),
        "several",
        "no integer kernel for LayerNormalization",
    ),
}


def cases() -> Iterator[object]:
    tables = (("onnxruntime", ON_ONNX_RUNTIME, (8, 8, 8)), ("onnxruntime", ON_LINEAR, (64,)))
    for runtime, table, shape in (*tables, ("openvino", ON_OPENVINO, (8, 8, 8))):
        for name, case in table.items():
            yield pytest.param(runtime, shape, *case, id=f"{runtime}-{name}")


@pytest.mark.parametrize(("runtime", "shape", "build", "kernel", "reason"), list(cases()))
def test_a_pattern_gets_its_kernel_and_its_reason(
    runtime: str, shape: tuple[int, ...], build: Make, kernel: str, reason: str
) -> None:
    make = QdqBuilder(shape)
    row = integer_report(make.bytes(build(make, make.image())), runtime)[0]
    assert row.is_integer == (reason == "")
    assert kernel in row.kernel
    assert reason in row.reason
    assert bool(reason) == bool(row.reason)


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_a_whole_network_is_integer_where_it_is_quantized(runtime: str) -> None:
    layers = integer_report(residual_network(), runtime)
    counts = LayerCounts.of(layers)
    assert (counts.integer_layers, counts.float_layers, counts.float_operations) == (3, 0, 0)
    assert [row.operation for row in layers if row.has_weights] == ["Conv", "Conv", "Gemm"]
    in_float = integer_report(residual_network(is_quantized=False), runtime)
    assert LayerCounts.of(in_float).integer_operations == 0
    assert LayerCounts.of(in_float).float_layers == 3
    assert {row.reason for row in in_float if row.kernel} == {"the model is not quantized"}


def test_a_model_of_another_tool_is_understood(tmp_path: Path) -> None:
    quantization = pytest.importorskip("onnxruntime.quantization")
    float_model, quantized = tmp_path / "float.onnx", tmp_path / "quantized.onnx"
    float_model.write_bytes(residual_network(is_quantized=False))
    images = np.random.default_rng(0).standard_normal((8, 3, 8, 8), np.float32)

    class Reader(quantization.CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.batches = iter([{INPUT: images}])

        def get_next(self) -> dict[str, np.ndarray] | None:
            return next(self.batches, None)

    kinds = quantization.QuantType
    quantization.quantize_static(float_model, quantized, Reader(), per_channel=True, activation_type=kinds.QUInt8)
    for runtime in RUNTIMES:
        counts = LayerCounts.of(integer_report(quantized, runtime))
        assert (counts.integer_layers, counts.float_layers) == (3, 0), runtime
    # Its default is int8 activations, which x86 kernels do not take behind a branch.
    quantization.quantize_static(float_model, quantized, Reader(), per_channel=True, activation_type=kinds.QInt8)
    reasons = {row.reason.partition(",")[0] for row in integer_report(quantized) if row.has_weights and row.reason}
    assert reasons <= {"int8 output has several readers", "int8 input has several readers"}


def test_nodes_without_names_are_called_after_their_output() -> None:
    make = QdqBuilder()
    output = make.quantized(make.conv(make.image()))
    convolution = next(node for node in make.nodes if node.op_type == "Conv")
    convolution.name = ""
    assert integer_report(make.bytes(output))[0].name == convolution.output[0]


def test_what_a_neighbour_does_is_not_counted() -> None:
    rows = [
        LayerReport("a", "Conv", "QLinearConv", True, True),
        LayerReport("b", "Conv", "Conv", False, True, "why"),
        LayerReport("c", "Relu", "", False, False),
        LayerReport("d", "Pad", "Pad", False, False, "why"),
    ]
    assert LayerCounts.of(rows) == LayerCounts(1, 1, 1, 2)
