"""ONNX Runtime on the CPU: sessions, and which nodes of its optimised graph compute with integers."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clcalib.export.runtimes.graph import DEQUANTIZE, MOVING, QUANTIZE, WEIGHTED, Node, QdqGraph
from clcalib.export.runtimes.layers import LayerReport
from clcalib.export.runtimes.model_file import OnnxModel, load_failure, package, run_failure
from clcalib.export.runtimes.onnx_runtime_reasons import reason
from clcalib.export.runtimes.session import Array, Session

_ERRORS_ONLY = 3
# A node's own mark; the optimiser keeps names, and adds to them.
_MARK = re.compile(r"clcalib_node_(\d+)_")
# Kernels that compute with integers whatever their output is; besides these, all whose name begins with QLinear.
_INTEGER = frozenset({
    "QGemm", "MatMulInteger", "MatMulIntegerToFloat", "ConvInteger", "DynamicQuantizeMatMul", "QAttention",
})  # fmt: skip
# Those of them that give floats where they have no scale of the output.
_SCALE_OF_OUTPUT = {"QGemm": 7}
_FLOAT_OUTPUT = frozenset({"MatMulIntegerToFloat", "DynamicQuantizeMatMul", "QAttention", DEQUANTIZE})
# Kernels that run on the type they are given.
_OF_ANY_TYPE = MOVING | frozenset({
    "MaxPool", "NhwcMaxPool", "Concat", "Clip", "Min", "Max", "Resize", "Pad", "Relu",
})  # fmt: skip
_LAYOUT = frozenset({"Transpose", "ReorderInput", "ReorderOutput"})


@dataclass(frozen=True)
class _Kernel:
    """A node of the optimised graph."""

    operation: str
    is_integer: bool


@dataclass(frozen=True)
class OnnxRuntime:
    """ONNX Runtime with its CPU kernels."""

    name: str = "onnxruntime"
    title: str = "ONNX Runtime"

    def version(self) -> str:
        """Of the installed package."""
        return str(package("onnxruntime").__version__)

    def session(self, model: OnnxModel, threads: int | None = None, shape: Sequence[int] | None = None) -> Session:
        """Load a model.

        Args:
            model: what was read.
            threads: of each operator; as many as the machine has cores by default.
            shape: of every batch; only checked, as knowing it makes this runtime no faster.

        Raises:
            ArgumentError: it has several inputs, or none of float32, or takes no batch of this shape.
            CheckpointError: it cannot be loaded.
        """
        image_input = model.image_input(shape)
        loaded = self._load(model, model.source, self._options(threads))
        names = tuple(each.name for each in loaded.get_outputs())

        def execute(batch: Array) -> Sequence[Array]:
            try:
                outputs: Sequence[Array] = loaded.run(None, {image_input.name: batch})
            except Exception as error:  # its errors have no base class of their own
                raise run_failure(model, self.title, self.version(), error) from None
            return outputs

        return Session(image_input, names, execute)

    def layers(self, model: OnnxModel) -> tuple[LayerReport, ...]:
        """What became of each operation, from the graph that the runtime's optimiser leaves."""
        graph = QdqGraph(model)
        kernels = self._kernels(model, graph)
        return tuple(_report(graph, node, kernels.get(node.index)) for node in graph.operations())

    def _kernels(self, model: OnnxModel, graph: QdqGraph) -> Mapping[int, _Kernel]:
        """Node of the model -> the node of the optimised graph that does its work."""
        marked = model.whole()
        for index, node in enumerate(marked.graph.node):
            node.name = f"clcalib_node_{index}_"
        with tempfile.TemporaryDirectory() as folder:
            options, path = self._options(1), Path(folder) / "optimized.onnx"
            options.optimized_model_filepath = str(path)
            self._load(model, _payload(model, marked), options)
            nodes = package("onnx").load(path).graph.node
        return _matched(nodes, graph)

    def _options(self, threads: int | None) -> Any:
        options = package("onnxruntime").SessionOptions()
        options.log_severity_level = _ERRORS_ONLY
        options.intra_op_num_threads = threads or 0
        # Threads of a session that waits must not take time from another one that is measured.
        options.add_session_config_entry("session.force_spinning_stop", "1")
        return options

    def _load(self, model: OnnxModel, source: str | bytes, options: Any) -> Any:
        runtime = package("onnxruntime")
        try:
            return runtime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # its errors have no base class of their own
            raise load_failure(model, self.title, self.version(), error) from None


def _payload(model: OnnxModel, marked: Any) -> bytes:
    try:
        data: bytes = marked.SerializeToString()
    except ValueError as error:  # above 2 GB
        raise load_failure(model, OnnxRuntime.title, "", error) from None
    return data


def _matched(nodes: Any, graph: QdqGraph) -> dict[int, _Kernel]:
    """Find each node by its mark, else by what it makes, else by a constant that it alone reads."""
    integer = _integer_tensors(nodes)
    found: dict[int, _Kernel] = {}
    unmarked: list[tuple[Any, _Kernel]] = []
    for node in nodes:
        if node.op_type in (QUANTIZE, DEQUANTIZE) or node.op_type in _LAYOUT:
            continue
        kernel = _Kernel(node.op_type, _is_integer(node, integer))
        mark = _MARK.search(node.name)
        if mark:
            found.setdefault(int(mark[1]), kernel)
        else:
            unmarked.append((node, kernel))
    for node, kernel in unmarked:
        index = _by_output(node, graph, found)
        index = _by_constant(node, graph, found) if index is None else index
        if index is not None:
            found[index] = kernel
    return found


def _by_output(node: Any, graph: QdqGraph, found: Mapping[int, _Kernel]) -> int | None:
    """The layer that a fused node ends with; layout changes name a node after the tensor that it made."""
    is_layer = any(kind in node.op_type for kind in ("Conv", "Gemm", "MatMul"))
    tensors = [*node.output, re.sub(r"_nchwc(_token_\d+)?$", "", node.name)]
    for tensor in tensors:
        origin = graph.producer(tensor)
        while origin is not None:
            if origin.index not in found and (origin.operation in WEIGHTED or not is_layer):
                return origin.index
            # A layer may have taken up the activation behind it; anything else bears the name of its own output.
            origin = graph.producer(origin.inputs[0]) if is_layer and origin.inputs else None
    return None


def _by_constant(node: Any, graph: QdqGraph, found: Mapping[int, _Kernel]) -> int | None:
    """The layer that alone reads a constant which a node still has, such as its bias."""
    for tensor in node.input:
        readers = [reader for reader in graph.consumers(tensor) if reader.operation in WEIGHTED]
        if len(readers) == 1 and graph.is_constant(tensor) and readers[0].index not in found:
            return readers[0].index
    return None


def _integer_tensors(nodes: Any) -> frozenset[str]:
    """The tensors of codes in the optimised graph."""
    codes: set[str] = set()
    for node in nodes:
        if node.op_type == QUANTIZE or _gives_codes(node) or (node.op_type in _OF_ANY_TYPE and node.input[0] in codes):
            codes.update(node.output)
    return frozenset(codes)


def _gives_codes(node: Any) -> bool:
    place = _SCALE_OF_OUTPUT.get(node.op_type)
    if place is not None:
        return len(node.input) > place and bool(node.input[place])
    return node.op_type.startswith("QLinear") and node.op_type not in _FLOAT_OUTPUT


def _is_integer(node: Any, codes: frozenset[str]) -> bool:
    if node.op_type.startswith("QLinear") or node.op_type in _INTEGER:
        return True
    return node.op_type in _OF_ANY_TYPE and bool(node.input) and node.input[0] in codes


def _report(graph: QdqGraph, node: Node, kernel: _Kernel | None) -> LayerReport:
    has_weights = graph.has_weights(node)
    operation, is_integer = (kernel.operation, kernel.is_integer) if kernel else ("", False)
    if kernel is None and has_weights:
        operation = "unknown"
    why = reason(graph, node) if operation and not is_integer else ""
    return LayerReport(node.title, node.operation, operation, is_integer, has_weights, why)
