"""PyTorch's integer kernels for x86 processors: a program in reference form, lowered to oneDNN by torchao.

The kernels take uint8 activations with a zero point, per tensor, and int8 weights without one, per output channel; a
convolution takes in a relu, a sum with quantized values and the rounding of its result.
"""

from __future__ import annotations

import functools
import logging
import operator
import warnings
import zipfile
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, fx
from torch.export import ExportedProgram

from clcalib.capture.graph import data_nodes, module_path, value_of
from clcalib.errors import CheckpointError, MissingPackageError
from clcalib.export.program.emit import MARK
from clcalib.export.program.operators import operators
from clcalib.export.runtimes.layers import LayerReport

_WEIGHTED = ("conv", "linear", "mm", "matmul")  # in names of operators
_NOT_COUNTED = (
    "quantize_per_tensor",
    "dequantize_per_tensor",
    "dequantize_per_channel",
    "sym_size",
    "alias",
    "clone",
    "contiguous",
)
_VIEWS = ("view", "reshape", "permute", "slice", "expand", "unsqueeze", "squeeze", "select", "t", "transpose")
_INTEGER = (torch.uint8, torch.int8)
OUTPUT = "output"


def load_program(path: Path) -> ExportedProgram:
    """A program that ``clcalib`` wrote, with the operators that it needs.

    Not for a file from elsewhere: ``torch.export.load`` may unpickle what is in it.  No command takes such a file as
    its input; a run loads the one that it has just written, to prove it.

    Raises:
        CheckpointError: there is no such file, or it is no program.
    """
    operators()
    try:
        with quiet_loading():
            return torch.export.load(str(path))
    except (OSError, RuntimeError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise CheckpointError(f"{path}: not a program of torch.export ({error}); write it anew") from error


@contextmanager
def quiet_loading() -> Iterator[None]:
    """Without what torch 2.11 warns of in its own loader: that it reads tensors out of bytes."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The given buffer is not writable", UserWarning)
        yield


@dataclass(frozen=True)
class LoweredProgram:
    """A program with oneDNN's kernels in it, for batches of one size; it runs without a compiler.

    Attributes:
        module: the graph.
        batch: the size.
    """

    module: fx.GraphModule
    batch: int

    @property
    def codes(self) -> dict[str, str]:
        """The quantizers whose codes some node of the graph makes: each name twice, as ``compare_codes`` wants it."""
        return {mark: mark for node in self.module.graph.nodes if (mark := _mark(node))}

    @property
    def outputs(self) -> tuple[str, ...]:
        """What the last output is called."""
        return (OUTPUT,)

    def layers(self) -> tuple[LayerReport, ...]:
        """What computes each operation."""
        constants = data_free(self.module.graph)
        return tuple(
            _report(node, constants)
            for node in self.module.graph.nodes
            if node.op == "call_function"
            and node not in constants
            and node.target is not operator.getitem
            and _plain(node) not in _NOT_COUNTED
        )

    @torch.no_grad()
    def __call__(self, images: Tensor) -> dict[str, Tensor]:
        """Codes by the names of their quantizers, and the last output as ``OUTPUT``.

        Args:
            images: at most ``batch``  # shape: (N, ...)
        """
        missing = self.batch - len(images)
        padded = torch.cat([images, images[-1:].expand(missing, *images.shape[1:])]) if missing else images
        recorder = _Recorder(self.module)
        outputs = recorder.run(padded)
        last = outputs[-1] if isinstance(outputs, list | tuple) else outputs
        return {name: value[: len(images)] for name, value in (*recorder.found.items(), (OUTPUT, last))}

    def arrays(self, images: NDArray[np.float32], shifts: Mapping[str, int]) -> Mapping[str, NDArray[np.generic]]:
        """The same for ``compare_codes``: codes less the shift that they have in the file."""
        found = self(torch.from_numpy(images))
        return {
            name: (value.short() - shifts[name] if name in shifts else value).numpy() for name, value in found.items()
        }


class _Recorder(fx.Interpreter):
    """Keeps the codes of every quantizer: as copies, for sums are computed in place."""

    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module)
        self.found: dict[str, Tensor] = {}

    def run_node(self, n: fx.Node) -> object:
        value = super().run_node(n)
        mark = _mark(n)
        if mark and isinstance(value, Tensor) and value.dtype in _INTEGER:
            self.found[mark] = value.clone()
        return value


@torch.no_grad()
def lower(program: ExportedProgram, images: Tensor) -> LoweredProgram:
    """Put oneDNN's integer kernels into a program.

    Args:
        program: of ``emit_program`` or ``load_program``.
        images: a batch of the size that is to be run.

    Raises:
        MissingPackageError: torchao is not installed.
    """
    lowering = _torchao()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch's own making, about torch's own graphs
        module = lowering(program.module(), (images,))
    _with_channels_last_sums(module.graph)
    module.recompile()
    return LoweredProgram(module, len(images))


def version() -> str:
    """Of what lowers.

    Raises:
        MissingPackageError: torchao is not installed.
    """
    _torchao()
    import torchao

    return f"{torch.__version__}, lowered by torchao {torchao.__version__}"


@functools.cache
def _torchao():  # type: ignore[no-untyped-def]  # torchao has no types
    """``lower_pt2e_quantized_to_x86``; importing the quantizer puts torchao's patterns into torch.compile."""
    try:
        with quiet():
            import torchao.quantization.pt2e.quantizer.x86_inductor_quantizer  # noqa: F401 - see above
            from torchao.quantization.pt2e.lowering import lower_pt2e_quantized_to_x86
    except ImportError as error:
        raise MissingPackageError(
            "torchao is not installed, and PyTorch's integer kernels are reached through it; run: "
            'pip install "clcalib[torchao]"'
        ) from error
    return lower_pt2e_quantized_to_x86


@contextmanager
def quiet() -> Iterator[None]:
    """Without torchao's words about its kernels for GPUs, which are not asked for here."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def _with_channels_last_sums(graph: fx.Graph) -> None:
    """Bring what a kernel adds to its result into the layout that it asks for; only images may come in another one."""
    for node in list(graph.nodes):
        if str(node.target) == "onednn.qconv2d_pointwise.binary":
            names = [argument.name for argument in node.target._schema.arguments]
            summand = node.args[names.index("qaccum")]
            with graph.inserting_before(node):
                call = torch.ops.aten.contiguous.default
                tensor = graph.call_function(call, (summand,), {"memory_format": torch.channels_last})
            tensor.meta = {key: value for key, value in summand.meta.items() if key != "custom"}
            node.replace_input_with(summand, tensor)


def _mark(node: fx.Node) -> str:
    custom = node.meta.get("custom") or {}
    return str(custom.get(MARK, "")) if _makes_codes(node) else ""


def _makes_codes(node: fx.Node) -> bool:
    value = value_of(node)
    return node.op == "call_function" and isinstance(value, Tensor) and value.dtype in _INTEGER


def _plain(node: fx.Node) -> str:
    return str(getattr(node.target, "__name__", node.target)).partition(".")[0]


def data_free(graph: fx.Graph) -> set[fx.Node]:
    """The nodes that do not depend on the images."""
    data = set(data_nodes(graph))
    return {node for node in graph.nodes if node not in data and node.op in ("get_attr", "call_function")}


def is_product(name: str) -> bool:
    """Whether an operator is a convolution or a matrix product, by whatever name a compiler calls it."""
    return any(part in name for part in _WEIGHTED)


def _report(node: fx.Node, constants: Collection[fx.Node]) -> LayerReport:
    name = _plain(node)
    is_kernel = str(node.target).startswith("onednn.q")
    has_weights = is_kernel or (is_product(name) and any(each in constants for each in node.all_input_nodes))
    read = [value_of(operand) for operand in node.all_input_nodes]
    is_integer = is_kernel or any(isinstance(value, Tensor) and value.dtype in _INTEGER for value in read)
    kernel = "" if name in _VIEWS else str(node.target)
    return LayerReport(
        name=module_path(node) or node.name,
        operation=name,
        kernel=kernel,
        is_integer=is_integer,
        has_weights=has_weights,
        reason="" if is_integer else _reason(has_weights),
    )


def _reason(has_weights: bool) -> str:
    if has_weights:
        return "x86 kernels take convolutions of one and two dimensions and linear layers, with 8-bit inputs"
    return "no integer kernel"
