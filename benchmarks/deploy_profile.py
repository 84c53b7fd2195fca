"""What costs time in a deployed network beside its arithmetic, in ONNX Runtime and OpenVINO on one thread.

Two forms of the same small graph take turns, and so do a shape that is known and one that is not; a row has the ratio
of their processor time.  A profile of ResNet-20 at W8A8 tells which kernels the rest goes to.

    python benchmarks/deploy_profile.py --data DATA       # DATA: folder with CIFAR-10 (clcalib data cifar10)

Writes ``benchmarks/results/deploy_profile.json``; ``integer_conditions_page.py`` puts it into ``docs/runtimes.md``.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import openvino
import torch
from torch import nn

import clcalib
from clcalib.export.deployed import onnx_rules
from clcalib.export.onnx.emit import emit
from clcalib.export.onnx.rules import OnnxRules
from clcalib.export.runtimes import RUNTIMES, session
from clcalib.quant.targets import TARGETS
from common import NETWORKS, ROOT, all_images, provenance, shuffled, write_result

sys.path.insert(0, str(ROOT))

from tests.qdq_models import INPUT, STEP, QdqBuilder

ROUNDS, LEAST_SECONDS, CALLS = 25, 0.02, 200
Execute = Callable[[np.ndarray], object]
Times = dict[tuple[str, str], list[float]]  # node and kernel -> the time of each call
# channels, pixels of a side, kernel, stride, output channels
IMAGES = (
    (1, 28, 3, 1, 32), (1, 28, 5, 1, 32), (3, 32, 3, 1, 16), (3, 224, 3, 2, 32), (3, 224, 7, 2, 64),
    (3, 224, 16, 16, 192),
)  # fmt: skip


def rows() -> Iterator[dict[str, Any]]:
    """Every pair: what was, what is now, and how much faster that is."""
    for channels, size, kernel, stride, out in IMAGES:
        pattern = f"{channels} of 4 channels filled up, {kernel}x{kernel} by {stride}, {size} pixels"
        images, graphs = filled(channels, size, kernel, stride, out)
        yield row("onnxruntime", pattern, images, *(session(graph, threads=1).execute for graph in graphs))
    for pattern, build in (("Pad written by the kernel", padded), ("two Slices as one", sliced)):
        for runtime in RUNTIMES:
            graphs = (build(is_new) for is_new in (False, True))
            images = batch(32, 56, 56)
            yield row(runtime, pattern, images, *(session(graph, runtime, threads=1).execute for graph in graphs))


def row(runtime: str, pattern: str, images: np.ndarray, before: Execute, after: Execute) -> dict[str, Any]:
    """The ratio of processor time, above 1 where the second form is faster: median over rounds, and quartiles."""
    calls = [max(1, round(LEAST_SECONDS / max(seconds(each, images, 5), 1e-6))) for each in (before, after)]
    pairs = [[seconds(e, images, c) for e, c in zip((before, after), calls, strict=True)] for _ in range(ROUNDS)]
    lower, middle, upper = statistics.quantiles([first / second for first, second in pairs], n=4)
    found = {"runtime": runtime, "pattern": pattern, "ratio": middle, "lower": lower, "upper": upper}
    print(f"{runtime:12} {pattern:60} {middle:.2f} ({lower:.2f} to {upper:.2f})", flush=True)
    return {key: round(value, 3) if isinstance(value, float) else value for key, value in found.items()}


def seconds(execute: Execute, images: np.ndarray, calls: int) -> float:
    start = time.process_time()
    for _ in range(calls):
        execute(images)
    return (time.process_time() - start) / calls


def batch(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((1, *shape), np.float32)


def filled(channels: int, size: int, kernel: int, stride: int, out: int) -> tuple[np.ndarray, list[bytes]]:
    """A convolution of images as it is, and with channels of zeros put behind theirs by hand."""
    graphs = []
    for wanted in (channels, 4):
        make = QdqBuilder((channels, size, size))
        codes = make.quantize(INPUT, STEP)
        if wanted > channels:
            sizes = make.constant(np.array([0, 0, 0, 0, 0, wanted - channels, 0, 0], np.int64))
            codes = make.add("Pad", codes, sizes, make.constant(np.uint8(128)))
        weight, scales = make.weight((out, wanted, kernel, kernel))
        x = make.dequantize(codes, STEP)
        attributes = {"strides": [stride] * 2, "pads": [0 if stride == kernel else kernel // 2] * 4}
        y = make.add("Conv", x, weight, make.bias(scales * np.float32(STEP)), **attributes)
        graphs.append(make.bytes(pooled(make, y)))
    return batch(channels, size, size), graphs


def padded(is_new: bool) -> bytes:
    """A depthwise convolution with a row of zeros around its input."""
    make = QdqBuilder((32, 56, 56))
    codes = make.quantize(INPUT, STEP)
    if not is_new:
        sizes = make.constant(np.array([0, 0, 1, 1, 0, 0, 1, 1], np.int64))
        codes = make.add("Pad", codes, sizes, make.constant(np.uint8(128)))
    weight, scales = make.weight((32, 1, 3, 3))
    bias = make.bias(scales * np.float32(STEP))
    pads = {"pads": [1] * 4} if is_new else {}
    return make.bytes(pooled(make, make.add("Conv", make.dequantize(codes, STEP), weight, bias, group=32, **pads)))


def sliced(is_new: bool) -> bytes:
    """Every second pixel of both axes, in front of a convolution."""
    make = QdqBuilder((32, 56, 56))
    codes = make.quantize(INPUT, STEP)
    for axes in ([2, 3],) if is_new else ([2], [3]):
        bounds = ([0] * len(axes), [2**62] * len(axes), axes, [2] * len(axes))
        codes = make.add("Slice", codes, *(make.constant(np.array(each, np.int64)) for each in bounds))
    weight, scales = make.weight((32, 32, 1, 1))
    y = make.add("Conv", make.dequantize(codes, STEP), weight, make.bias(scales * np.float32(STEP)))
    return make.bytes(pooled(make, y))


def pooled(make: QdqBuilder, tensor: str) -> str:
    return make.quantized(make.add("GlobalAveragePool", make.quantized(tensor)))


def deployed(data: Path, target: str) -> tuple[bytes, bytes]:
    """ResNet-20 in float and at W8A8, as a target has it."""
    model: nn.Module = NETWORKS["resnet20"].load()
    images = all_images(data, "train")[0][shuffled(0)[:256]]
    calibration = clcalib.CalibrationSet.from_tensor(images)
    bits = clcalib.Bits(8, 8)
    result = clcalib.quantize(
        model, calibration, recipe=clcalib.recipes.nearest(), bits=bits, target=target, measured_images=0
    )
    chains = (clcalib.capture(model, images[:2]), OnnxRules()), (result.quantized.chain, onnx_rules(TARGETS[target]))
    first, second = (emit(chain, rules=rules).model.SerializeToString() for chain, rules in chains)
    return first, second


def shape_rows(models: dict[str, tuple[bytes, bytes]]) -> Iterator[dict[str, Any]]:
    """What it is worth that a session is told the shape of its batches."""
    images = batch(3, 32, 32)
    for runtime, (whole, narrow) in models.items():
        for name, model in (("float", whole), ("W8A8", narrow)):
            both = (session(model, runtime, threads=1, shape=shape).execute for shape in (None, images.shape))
            yield row(runtime, f"shape of the batch known, ResNet-20 in {name}", images, *both)


def shares(model: bytes, runtime: str) -> dict[str, float]:
    """Kernel -> its share of the time of all kernels, at a batch of 1; of each node the median over the calls."""
    times = (_onnxruntime_times if runtime == "onnxruntime" else _openvino_times)(model, batch(3, 32, 32))
    spent: Counter[str] = Counter()
    for (_, kernel), each in times.items():
        spent[kernel] += statistics.median(each)
    total = sum(spent.values())
    return {kernel: round(each / total, 3) for kernel, each in spent.most_common() if each / total >= 0.005}


def _onnxruntime_times(model: bytes, images: np.ndarray) -> Times:
    with tempfile.TemporaryDirectory() as folder:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.log_severity_level = 1, 3
        options.enable_profiling, options.profile_file_prefix = True, str(Path(folder) / "profile")
        loaded = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        name = loaded.get_inputs()[0].name
        for _ in range(CALLS):
            loaded.run(None, {name: images})
        events = json.loads(Path(loaded.end_profiling()).read_text())
    times: Times = defaultdict(list)
    for event in events:
        if event["name"].endswith("_kernel_time"):
            times[event["name"], event["args"]["op_name"]].append(event["dur"])
    return times


def _openvino_times(model: bytes, images: np.ndarray) -> Times:
    core = openvino.Core()
    settings = {"INFERENCE_PRECISION_HINT": "f32", "NUM_STREAMS": 1, "INFERENCE_NUM_THREADS": 1, "PERF_COUNT": True}
    request = core.compile_model(core.read_model(model, b""), "CPU", settings).create_infer_request()
    times: Times = defaultdict(list)
    for _ in range(CALLS):
        request.infer([images])
        for each in request.get_profiling_info():
            times[each.node_name, f"{each.node_type} {each.exec_type}"].append(each.real_time.total_seconds())
    return times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    torch.set_num_threads(1)
    models = {runtime: deployed(parser.parse_args().data, runtime) for runtime in RUNTIMES}
    found = [*rows(), *shape_rows(models)]
    profiles = {
        runtime: {"float": shares(pair[0], runtime), "W8A8": shares(pair[1], runtime)}
        for runtime, pair in models.items()
    }
    versions = {name: runtime.version() for name, runtime in RUNTIMES.items()}
    result = {**provenance(seed=0), "versions": versions, "rounds": ROUNDS, "rows": found, "profiles": profiles}
    print(write_result("deploy_profile", result).name)


if __name__ == "__main__":
    main()
