"""Under which conditions ONNX Runtime and OpenVINO compute with integers, found by giving them small quantized graphs.

Each case is one pattern of quantizers around an operation.  A row tells the kernels that run, whether the operation in
question is integer, the reason that the report gives, and the largest difference to the same graph without any
optimisation, in steps of the output's quantizer.

    python benchmarks/integer_conditions.py [--only Conv]

Writes ``benchmarks/results/integer_conditions.json``.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import onnxruntime
from onnx import TensorProto

from clcalib.errors import ClcalibError
from clcalib.export.runtimes import RUNTIMES, integer_report, session
from common import ROOT, provenance, write_result

sys.path.insert(0, str(ROOT))

from tests.qdq_models import INPUT, STEP, WIDE, QdqBuilder

Make = Callable[[QdqBuilder, str], str]
WORDS = {True: "integer", False: "FLOAT", None: "folded"}
SHAPES = {"Gemm": (64,), "MatMul": (64,), "Product": (4, 16, 16)}


def clip(make: QdqBuilder, tensor: str, top: float) -> str:
    return make.add("Clip", tensor, make.constant(np.float32(0)), make.constant(np.float32(top)))


def codes(make: QdqBuilder, low: int, high: int, tensor: str, zero: int = 0) -> str:
    """Quantize, clip the codes, dequantize."""
    inside = (make.constant(np.uint8(low)), make.constant(np.uint8(high)))
    return make.dequantize(make.add("Clip", make.quantize(tensor, WIDE, zero), *inside), WIDE, zero)


def fixed(make: QdqBuilder, *values: int) -> str:
    return make.constant(np.array(values, np.int64))


def half(make: QdqBuilder, tensor: str) -> str:
    return make.add("MaxPool", tensor, kernel_shape=[2, 2], strides=[2, 2])


def q(make: QdqBuilder, tensor: str, *more: Any) -> str:
    return make.quantized(tensor, *more)


def silu(make: QdqBuilder, x: str, *, inner: bool) -> str:
    y = q(make, make.conv(x))
    gate = make.add("Sigmoid", y)
    return q(make, make.add("Mul", y, q(make, gate, 1 / 255, 0) if inner else gate))


def hard_swish(make: QdqBuilder, x: str) -> str:
    y = q(make, make.conv(x))
    three = q(make, make.constant(np.float32(3)), 3 / 255, 0)
    return q(make, make.add("Mul", y, q(make, make.add("Add", y, three), 6 / 255, 0)))


def classifier(make: QdqBuilder, x: str, way: str) -> str:
    pooled = make.add("GlobalAveragePool", x)
    if way == "codes":
        flat = make.dequantize(make.add("Flatten", make.quantize(pooled)))
    else:
        flat = make.add("Flatten", q(make, pooled))
        flat = q(make, flat) if way == "twice" else flat
    return make.gemm(flat, scale=WIDE, channels=8)


def two_quantizers(make: QdqBuilder, x: str) -> str:
    y = make.add("Relu", make.conv(x))
    return q(make, make.add("Add", q(make, make.conv(q(make, y, WIDE, 0), scale=WIDE)), q(make, y, 0.07, 0)))


def requantized(make: QdqBuilder, x: str) -> str:
    y = q(make, make.add("Relu", make.conv(x)), WIDE, 0)
    return q(make, make.add("Add", q(make, make.conv(y, scale=WIDE)), q(make, y, 0.07, 0)))


def signed(make: QdqBuilder, readers: int) -> str:
    y = q(make, make.conv(make.image(np.int8)), WIDE, 0, np.int8)
    z = q(make, make.conv(y, scale=WIDE), WIDE, 0, np.int8)
    return z if readers == 1 else q(make, make.add("Add", z, y), WIDE, 0, np.int8)


def product(make: QdqBuilder, left: tuple[int, type], right: tuple[int, type]) -> str:
    turned = make.add("Transpose", INPUT, perm=[0, 1, 3, 2])
    return make.add("MatMul", q(make, INPUT, STEP, *left), q(make, turned, STEP, *right))


def int4(make: QdqBuilder, x: str) -> str:
    weight, zero = make.codes_of_4_bits(np.zeros((8, 8, 3, 3), int)), make.codes_of_4_bits(np.zeros(8, int))
    scales = make.constant(np.full(8, 0.1, np.float32))
    return q(make, make.add("Conv", x, make.add("DequantizeLinear", weight, scales, zero, axis=0), pads=[1] * 4))


def uint4(make: QdqBuilder, x: str) -> str:
    scale, zero = make.constant(np.float32(0.3)), make.codes_of_4_bits(0, TensorProto.UINT4)
    return make.add("DequantizeLinear", make.add("QuantizeLinear", make.conv(x), scale, zero), scale, zero)


CASES: dict[str, dict[str, Make]] = {
    "Conv": {
        "output quantized": lambda m, x: q(m, m.conv(x)),
        "output in float": lambda m, x: m.conv(x),
        "input in float": lambda m, x: q(m, m.conv(INPUT)),
        "bias in float, output quantized": lambda m, x: q(m, m.conv(x, bias="float")),
        "bias of another scale": lambda m, x: q(m, m.conv(x, bias="other scale")),
        "depthwise": lambda m, x: q(m, m.conv(x, group=8)),
        "int8 weights, zero points by channel": lambda m, x: q(m, m.conv(x, zero=np.arange(8))),
        "uint8 weights, zero point 128": lambda m, x: q(m, m.conv(x, zero=128, kind=np.uint8)),
        "int4 weights": int4,
        "output quantized to uint4": uint4,
        "int8 activations, one reader": lambda m, x: signed(m, 1),
        "int8 activations, two readers": lambda m, x: signed(m, 2),
        "output read by two quantizers": two_quantizers,
        "output quantized, then requantized for one reader": requantized,
    },
    "Conv and activation": {
        "Relu, zero point 0": lambda m, x: q(m, m.add("Relu", m.conv(x)), WIDE, 0),
        "Relu, zero point 10": lambda m, x: q(m, m.add("Relu", m.conv(x)), WIDE, 10),
        "zero point 10, Relu as a clip of codes": lambda m, x: codes(m, 10, 255, m.conv(x), 10),
        "Clip to 6, quantizer ends at 6": lambda m, x: q(m, clip(m, m.conv(x), 6), 6 / 255, 0),
        "Clip to 6, quantizer ends at 25.5": lambda m, x: q(m, clip(m, m.conv(x), 6), WIDE, 0),
        "4 bits by Clip in front of the quantizer": lambda m, x: q(m, clip(m, m.conv(x), 15 * WIDE), WIDE, 0),
        "4 bits by a clip of codes": lambda m, x: codes(m, 0, 15, m.conv(x)),
        "LeakyRelu, no quantizer between": lambda m, x: q(m, m.add("LeakyRelu", m.conv(x))),
        "LeakyRelu, quantizer between": lambda m, x: q(m, m.add("LeakyRelu", q(m, m.conv(x)))),
        "HardSwish, no quantizer between": lambda m, x: q(m, m.add("HardSwish", m.conv(x))),
        "HardSwish, quantizer between": lambda m, x: q(m, m.add("HardSwish", q(m, m.conv(x)))),
        "HardSwish as Add and Mul with quantizers": hard_swish,
        "SiLU, quantizer behind Conv": lambda m, x: silu(m, x, inner=False),
        "SiLU, quantizers behind Conv and Sigmoid": lambda m, x: silu(m, x, inner=True),
        "Gelu, quantizer between": lambda m, x: q(m, m.add("Gelu", q(m, m.conv(x)))),
    },
    "Add": {
        "both inputs quantized": lambda m, x: q(m, m.add("Add", q(m, m.conv(x)), x)),
        "one input in float": lambda m, x: q(m, m.add("Add", m.conv(x), x)),
        "output in float": lambda m, x: m.add("Add", q(m, m.conv(x)), x),
        "Relu behind, zero point 0": lambda m, x: q(m, m.add("Relu", m.add("Add", q(m, m.conv(x)), x)), WIDE, 0),
        "Relu behind, zero point 10": lambda m, x: q(m, m.add("Relu", m.add("Add", q(m, m.conv(x)), x)), WIDE, 10),
        "of a constant": lambda m, x: q(m, m.add("Add", x, q(m, m.constant(np.ones((8, 1, 1), np.float32))))),
        "Mul": lambda m, x: q(m, m.add("Mul", q(m, m.conv(x)), x)),
        "Mul without zero points": lambda m, x: q(
            m, m.add("Mul", q(m, m.conv(x), WIDE, 0), q(m, INPUT, STEP, 0)), WIDE, 0
        ),
        "Sub": lambda m, x: q(m, m.add("Sub", q(m, m.conv(x)), x)),
    },
    "Pools and movement": {
        "GlobalAveragePool, output quantized": lambda m, x: q(m, m.add("GlobalAveragePool", x)),
        "GlobalAveragePool, output in float": lambda m, x: m.add("GlobalAveragePool", x),
        "ReduceMean": lambda m, x: q(m, m.add("ReduceMean", x, fixed(m, 2, 3))),
        "AveragePool": lambda m, x: q(m, m.add("AveragePool", x, kernel_shape=[2, 2])),
        "MaxPool, same quantizer": lambda m, x: q(m, half(m, x), STEP),
        "MaxPool, another scale": lambda m, x: q(m, half(m, x), WIDE),
        "MaxPool, none behind": lambda m, x: q(m, m.conv(half(m, x))),
        "Concat, output quantized": lambda m, x: q(m, m.add("Concat", x, q(m, m.conv(x)), axis=1)),
        "Concat, output in float": lambda m, x: q(
            m, m.conv(m.add("Concat", x, q(m, m.conv(x), STEP), axis=1), channels=16)
        ),
        "Pad behind a dequantizer": lambda m, x: q(m, m.add("Pad", x, fixed(m, 0, 0, 1, 1, 0, 0, 1, 1)), STEP),
        "Pad of codes": lambda m, x: m.dequantize(
            m.add("Pad", m.quantize(INPUT), fixed(m, 0, 0, 1, 1, 0, 0, 1, 1), m.constant(np.uint8(128)))
        ),
        "Softmax": lambda m, x: q(m, m.add("Softmax", x, axis=1), 1 / 255, 0),
        "LayerNormalization": lambda m, x: q(
            m, m.add("LayerNormalization", x, m.constant(np.ones(8, np.float32)), axis=-1)
        ),
    },
    "Classifier": {
        "Flatten behind a dequantizer": lambda m, x: classifier(m, x, "once"),
        "quantizers behind Flatten too": lambda m, x: classifier(m, x, "twice"),
        "Flatten of codes": lambda m, x: classifier(m, x, "codes"),
    },
    "Gemm": {
        "int32 bias, output in float": lambda m, x: m.gemm(x),
        "int32 bias, output quantized": lambda m, x: q(m, m.gemm(x)),
        "bias in float, output in float": lambda m, x: m.gemm(x, bias="float"),
        "bias in float, output quantized": lambda m, x: q(m, m.gemm(x, bias="float")),
        "bias of another scale": lambda m, x: m.gemm(x, bias="other scale"),
        "no bias": lambda m, x: m.gemm(x, bias="none"),
        "zero points by channel": lambda m, x: m.gemm(x, zero=np.arange(10)),
        "alpha 0.5": lambda m, x: q(m, m.gemm(x, alpha=0.5)),
    },
    "MatMul": {
        "output quantized": lambda m, x: q(m, m.matmul(x)),
        "output in float": lambda m, x: m.matmul(x),
        "zero points by column": lambda m, x: m.matmul(x, zero=np.arange(10)),
        "bias in float, output in float": lambda m, x: m.add("Add", m.matmul(x), m.constant(np.ones(10, np.float32))),
        "bias in float, output quantized": lambda m, x: q(
            m, m.add("Add", m.matmul(x), m.constant(np.ones(10, np.float32)))
        ),
        "input in float": lambda m, x: m.matmul(INPUT),
    },
    "Product": {
        "of int8, output quantized": lambda m, x: q(m, product(m, (0, np.int8), (0, np.int8))),
        "of int8, output in float": lambda m, x: product(m, (0, np.int8), (0, np.int8)),
        "of uint8 with zero point 0 and int8": lambda m, x: product(m, (0, np.uint8), (0, np.int8)),
        "of int8 and uint8 with zero point 0": lambda m, x: product(m, (0, np.int8), (0, np.uint8)),
        "of uint8 with zero points": lambda m, x: product(m, (100, np.uint8), (90, np.uint8)),
        "of uint8 with zero point 128": lambda m, x: product(m, (128, np.uint8), (128, np.uint8)),
    },
}


def unoptimised(model: bytes, images: np.ndarray) -> np.ndarray:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 3
    runtime = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    return runtime.run(None, {INPUT: images})[0]


def measure(model: bytes, runtime: str, images: np.ndarray, expected: np.ndarray) -> dict[str, Any]:
    try:
        layers = integer_report(model, runtime)
        outputs = next(iter(session(model, runtime, threads=1)(images).values()))
    except ClcalibError as error:
        return {"error": str(error)[:200]}
    rows = [row for row in layers if row.kernel]
    return {
        "integer": all(row.is_integer for row in rows) if rows else None,  # None: a quantizer does it too
        "kernels": [row.kernel for row in rows],
        "reasons": [f"{row.operation}: {row.reason}" for row in rows if row.reason],
        "steps_off": round(float(np.abs(outputs - expected).max() / WIDE), 3),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=CASES, help="one group of cases; writes no result")
    only = parser.parse_args().only
    rows = []
    for group, cases in CASES.items():
        for pattern, build in cases.items() if only in (None, group) else ():
            make = QdqBuilder(SHAPES.get(group, (8, 8, 8)))
            model = make.bytes(build(make, make.image()))
            images = 2 * np.random.default_rng(1).standard_normal((2, *make.shape[1:]), np.float32)
            expected = unoptimised(model, images)
            found = {name: measure(model, name, images, expected) for name in RUNTIMES}
            rows.append({"group": group, "pattern": pattern, **found})
            marks = ("error" if "error" in row else WORDS[row["integer"]] for row in found.values())
            kernels = " ".join(found["onnxruntime"].get("kernels", ()))
            print(f"{group:20} {pattern:50} {'  '.join(f'{mark:8}' for mark in marks)} {kernels}")
    if only is None:
        versions = {name: runtime.version() for name, runtime in RUNTIMES.items()}
        print(write_result("integer_conditions", {**provenance(seed=0), "versions": versions, "rows": rows}).name)


if __name__ == "__main__":
    main()
