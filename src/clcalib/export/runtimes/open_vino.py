"""OpenVINO on the CPU: compiled models, and the precision of each of their nodes."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from clcalib.export.runtimes.graph import Node, QdqGraph
from clcalib.export.runtimes.layers import LayerReport
from clcalib.export.runtimes.model_file import OnnxModel, load_failure, package, run_failure
from clcalib.export.runtimes.open_vino_reasons import reason
from clcalib.export.runtimes.session import Array, Session

_MARK = re.compile(r"^clcalib_node_(\d+)_")
_INTEGER = frozenset({"u8", "i8"})
# Node types that do the arithmetic of a layer; others may bear its name too, such as a transposed weight.
_COMPUTING = frozenset({"Convolution", "Deconvolution", "FullyConnected", "MatMul", "Subgraph"})
_SILENT = frozenset({
    "Input", "Output", "Const", "Constant", "Parameter", "Result", "Reorder", "Convert", "FakeQuantize",
})  # fmt: skip


@dataclass(frozen=True)
class _Kernel:
    """A node of the compiled model; ``primitive`` is its implementation, such as ``brgconv_avx512_I8``."""

    kind: str
    precision: str
    primitive: str
    origins: tuple[str, ...]

    @property
    def is_integer(self) -> bool:
        """Of arithmetic, by its implementation: a precision may be that of stored weights; else by its precision."""
        if self.kind in _COMPUTING:
            return self.primitive.rpartition("_")[2].lower() in ("i8", "u8")
        return self.precision in _INTEGER


@dataclass(frozen=True)
class OpenVino:
    """OpenVINO with its CPU plugin, computing in float32 what is not integer."""

    name: str = "openvino"
    title: str = "OpenVINO"

    def version(self) -> str:
        """Of the installed package, without its build."""
        return str(package("openvino").__version__).partition("-")[0]

    def session(self, model: OnnxModel, threads: int | None = None, shape: Sequence[int] | None = None) -> Session:
        """Load a model.

        Args:
            model: what was read.
            threads: of inference; as many as the machine has cores by default.
            shape: of every batch; without it, sizes are worked out again in every call.

        Raises:
            ArgumentError: it has several inputs, or none of float32, or takes no batch of this shape.
            CheckpointError: it cannot be loaded.
        """
        image_input = model.image_input(shape)
        compiled = self._compile(model, model.source, threads, shape)
        request = compiled.create_infer_request()
        names = tuple(output.any_name if output.names else f"output {i}" for i, output in enumerate(compiled.outputs))

        def execute(batch: Array) -> Sequence[Array]:
            try:
                found = request.infer([batch], share_inputs=True)
            except Exception as error:  # a RuntimeError of any kind of trouble
                raise run_failure(model, self.title, self.version(), error) from None
            return [np.asarray(found[place]) for place in range(len(names))]

        return Session(image_input, names, execute)

    def layers(self, model: OnnxModel) -> tuple[LayerReport, ...]:
        """What became of each operation, from the model that the plugin runs."""
        graph, marked = QdqGraph(model), model.whole()
        for index, node in enumerate(marked.graph.node):
            node.name = f"clcalib_node_{index}_"
        try:
            payload = marked.SerializeToString()
        except ValueError as error:  # above 2 GB
            raise load_failure(model, self.title, self.version(), error) from None
        compiled = self._compile(model, payload, 1)
        kernels = [_kernel(node) for node in compiled.get_runtime_model().get_ordered_ops()]
        kernels = [kernel for kernel in kernels if kernel.kind not in _SILENT]
        return tuple(_report(graph, node, _of_node(kernels, node, graph)) for node in graph.operations())

    def _compile(
        self, model: OnnxModel, source: str | bytes, threads: int | None, shape: Sequence[int] | None = None
    ) -> Any:
        core = package("openvino").Core()
        settings = {"INFERENCE_PRECISION_HINT": "f32", "NUM_STREAMS": 1}
        settings |= {} if threads is None else {"INFERENCE_NUM_THREADS": threads}
        try:
            read = core.read_model(source) if isinstance(source, str) else core.read_model(source, b"")
            if shape is not None:
                read.reshape(list(shape))
            return core.compile_model(read, "CPU", settings)
        except Exception as error:  # a RuntimeError of any kind of trouble
            raise load_failure(model, self.title, self.version(), error) from None


def _kernel(node: Any) -> _Kernel:
    """Read what the runtime model tells of a node."""
    told = node.get_rt_info()

    def text(key: str) -> str:
        value = told[key] if key in told else ""  # noqa: SIM401 - it is no dict
        return str(value.astype(str) if hasattr(value, "astype") else value)

    origins = tuple(name for name in text("originalLayersNames").split(",") if name)
    return _Kernel(text("layerType"), text("runtimePrecision"), text("primitiveType"), origins)


def _of_node(kernels: Sequence[_Kernel], node: Node, graph: QdqGraph) -> _Kernel | None:
    """The kernel that bears a node's mark, or the name of the model's output that it makes."""

    def is_its(origin: str) -> bool:
        mark = _MARK.match(origin)
        if mark:
            return int(mark[1]) == node.index
        # The node that makes an output is named after it.
        return any(origin == name or origin.startswith((f"{name}/", f"{name}_original")) for name in own)

    own = [name for name in node.outputs if name in graph.outputs]
    found = [kernel for kernel in kernels if any(is_its(origin) for origin in kernel.origins)]
    if not found:
        return None
    doing = [kernel for kernel in found if kernel.kind in _COMPUTING]
    # An operation of several kernels is integer if all of them are.
    return doing[0] if doing else next((kernel for kernel in found if not kernel.is_integer), found[0])


def _report(graph: QdqGraph, node: Node, kernel: _Kernel | None) -> LayerReport:
    has_weights = graph.has_weights(node)
    if kernel is None or (kernel.kind in _COMPUTING and not has_weights and node.operation != "MatMul"):
        # Folded into a constant, or done by the layer in front of it; a normalisation is a few nodes of other names.
        words = "unknown" if has_weights else "several" if "Normalization" in node.operation and kernel is None else ""
        why = reason(graph, node) if words else ""
        return LayerReport(node.title, node.operation, words, False, has_weights, why)
    why = "" if kernel.is_integer else reason(graph, node)
    words = f"{kernel.kind} {kernel.primitive}"
    return LayerReport(node.title, node.operation, words, kernel.is_integer, has_weights, why)
