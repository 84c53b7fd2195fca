"""ExecuTorch: a program in reference form becomes a .pte file whose layers XNNPACK computes with integers.

XNNPACK's kernels take int8 activations with a zero point, per tensor, and int8 weights without one, per output channel;
what they read and what they store is quantized.  It runs on x86 and, above all, on the ARM processors of phones.
"""

from __future__ import annotations

import importlib.metadata
import io
import operator
import os
import sys
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, fx
from torch.export import ExportedProgram

from clcalib.errors import MissingPackageError
from clcalib.export.program.x86 import OUTPUT, is_product, quiet
from clcalib.export.runtimes.layers import LayerReport

LARGEST_BATCH = 64  # memory is planned for it when the file is written
_MOVES = ("view", "permute", "slice", "expand", "squeeze", "select", "clone", "dim_order", "sym_size")


def require_executorch() -> None:
    """Load the parts of ExecuTorch that write a file.

    Raises:
        MissingPackageError: it is not installed.
    """
    try:
        with quiet(), _silent():
            import executorch.backends.xnnpack.partition.xnnpack_partitioner
            import executorch.exir
            import executorch.runtime  # noqa: F401 - loaded so that what follows finds them
    except ImportError as error:
        raise MissingPackageError(
            'executorch is not installed, and writing .pte files needs it; run: pip install "clcalib[executorch]"'
        ) from error


def version() -> str:
    """Of the installed package."""
    return importlib.metadata.version("executorch")


@dataclass(frozen=True)
class Partitioned:
    """A program as ExecuTorch runs it.

    Attributes:
        content: of the .pte file.
        layers: what computes each operation.
    """

    content: bytes
    layers: tuple[LayerReport, ...]


@torch.no_grad()
def partition(program: ExportedProgram) -> Partitioned:
    """Give XNNPACK all that it takes, the rest to ExecuTorch's own kernels, which compute in float.

    Args:
        program: of ``emit_program(..., is_signed=True, largest_batch=LARGEST_BATCH)``.

    Raises:
        MissingPackageError: ExecuTorch is not installed.
    """
    require_executorch()
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import to_edge_transform_and_lower

    with quiet(), _silent():
        edge = to_edge_transform_and_lower(program, partitioner=[XnnpackPartitioner()])
        whole = edge.exported_program()
        layers = [*_reports(whole, is_delegated=False)]
        for part in whole.graph_module.children():
            if hasattr(part, "original_module"):
                layers += _reports(part.original_module, is_delegated=True)
        content = bytes(edge.to_executorch().buffer)
    return Partitioned(content, tuple(layers))


class PteNetwork:
    """A .pte file in ExecuTorch's runtime.

    Args:
        content: of the file.
    """

    def __init__(self, content: bytes) -> None:
        require_executorch()
        from executorch.runtime import Runtime

        with _silent():
            self._program: Any = Runtime.get().load_program(content)  # owns the memory that holds the content
            self._method: Any = self._program.load_method("forward")

    def __call__(self, images: Tensor) -> list[Tensor]:
        """All outputs.

        Args:
            images: at most as many as the program was written for  # shape: (N, ...)
        """
        with _silent():
            outputs: list[Tensor] = self._method.execute([images.contiguous()])
        return [output.clone() for output in outputs]  # the runtime uses the memory again


@dataclass(frozen=True)
class PteCodes:
    """A written file, and beside it the same program with all codes among its outputs, for ``compare_codes``.

    Codes stay inside of XNNPACK otherwise.  Both programs have the same kernels; the last output is the file's own.

    Attributes:
        file: as it was written.
        with_codes: of ``partition(emit_program(..., returned_codes=list(shifts)))``.
        shifts: quantizer -> shift that its codes have in the program.
    """

    file: PteNetwork
    with_codes: PteNetwork
    shifts: Mapping[str, int]
    outputs: tuple[str, ...] = (OUTPUT,)

    @property
    def codes(self) -> dict[str, str]:
        """Each quantizer's name twice."""
        return {name: name for name in self.shifts}

    def arrays(self, images: NDArray[np.float32]) -> Mapping[str, NDArray[np.generic]]:
        """Codes by the names of their quantizers, without the shift, and the last output as ``OUTPUT``."""
        batch = torch.from_numpy(images)
        found = zip(self.shifts.items(), self.with_codes(batch), strict=False)  # outputs stand behind the codes
        codes = {name: (value.short() - shift).numpy() for (name, shift), value in found}
        return {**codes, OUTPUT: self.file(batch)[-1].numpy()}


def _reports(program: ExportedProgram, *, is_delegated: bool) -> Iterator[LayerReport]:
    constants = _constants(program)
    for node in program.graph.nodes:
        name = _plain(node)
        is_step = node.op == "call_function" and node not in constants and node.target is not operator.getitem
        if not is_step or "quantize" in name or "delegate" in name:
            continue
        is_integer = is_delegated and _reads_codes(node, constants) and _gives_codes(node)
        yield LayerReport(
            name=node.name,
            operation=name,
            kernel="" if any(part in name for part in _MOVES) else f"xnnpack.{name}" if is_delegated else name,
            is_integer=is_integer,
            has_weights=is_product(name) and any(operand in constants for operand in node.all_input_nodes),
            reason="" if is_integer else "XNNPACK has no integer kernel for it, or its result is not quantized",
        )


def _constants(program: ExportedProgram) -> set[fx.Node]:
    """The nodes that do not depend on the images; parameters are placeholders here."""
    given = set(program.graph_signature.user_inputs)
    found: set[fx.Node] = set()
    for node in program.graph.nodes:
        is_free = node.op != "placeholder" and bool(node.all_input_nodes) and found.issuperset(node.all_input_nodes)
        if is_free or (node.op == "placeholder" and node.name not in given):
            found.add(node)
    return found


def _reads_codes(node: fx.Node, constants: set[fx.Node]) -> bool:
    """Whether all that a kernel reads is dequantized, or comes from an operator that is computed with it."""
    read = [operand for operand in node.all_input_nodes if operand not in constants]
    if _is_clamp(node) and not any("dequantize" in _plain(operand) for operand in read):
        return all(_reads_codes(operand, constants) for operand in read)
    return all("dequantize" in _plain(operand) for operand in read)


def _gives_codes(node: fx.Node) -> bool:
    """Whether the result is quantized, perhaps behind a clamp that the kernel takes in."""
    return all(_plain(user).startswith("quantize") or (_is_clamp(user) and _gives_codes(user)) for user in node.users)


def _is_clamp(node: fx.Node) -> bool:
    return _plain(node) in ("relu", "hardtanh", "clamp")


def _plain(node: fx.Node) -> str:
    """The operator's own name: ``convolution`` of ``aten.convolution.default``."""
    name = str(getattr(getattr(node.target, "_op", node.target), "_name", node.target))
    return name.rpartition("::")[2].removeprefix("aten.").removeprefix("quantized_decomposed.").partition(".")[0]


@contextmanager
def _silent() -> Iterator[None]:
    """Without what ExecuTorch's native parts write about the processor, and without warnings of its makers' own."""
    sys.stderr.flush()
    with warnings.catch_warnings(), open(os.devnull, "wb") as nowhere:
        warnings.simplefilter("ignore")
        try:
            kept = os.dup(2)
        except (OSError, io.UnsupportedOperation):  # there is no such stream
            yield
            return
        try:
            os.dup2(nowhere.fileno(), 2)
            yield
        finally:
            sys.stderr.flush()
            os.dup2(kept, 2)
            os.close(kept)
