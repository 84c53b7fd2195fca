"""The chain of units: a captured graph, its division into units, and the pieces before, inside and after each unit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor, fx, nn

from clcalib.capture.attention import expand_attention
from clcalib.capture.blocks import UnitKind
from clcalib.capture.fold import fold_batch_norm
from clcalib.capture.graph import extract, input_node, weighted_nodes
from clcalib.capture.outputs import end_node, output_nodes
from clcalib.capture.products import find_products
from clcalib.capture.trace import trace
from clcalib.capture.units import Unit, group_units
from clcalib.errors import ArgumentError

ReadPoint = Literal["logits", "features"]


class Placed(Protocol):
    """Where the pieces of a chain are computed whose units are with several workers."""

    def __call__(
        self, piece: fx.GraphModule, inputs: Sequence[str], outputs: Sequence[str], dtype: torch.dtype | None
    ) -> fx.GraphModule:
        """The piece from the nodes ``inputs`` to ``outputs``, which asks the workers that have its weights.

        Args:
            piece: as it was cut out; what this worker has no weights of cannot compute.
            inputs: names of nodes of the chain.
            outputs: the same.
            dtype: of its convolutions, where it was rewritten for speed; None where it is as it was cut out.
        """


@dataclass(frozen=True, eq=False)
class Chain:
    """A float network as units f_1 ... f_K.

    Every piece is a plain ``GraphModule`` that takes tensors by position, returns a tuple of tensors, and shares
    parameters and submodules with ``module`` by reference.  For every unit, on the same images,
    ``suffix(k)(*body(k)(*prefix(k)(x))) == (module(x),)``, bit for bit.

    A network may return several tensors.  What is read off it as one tensor (the keys of the contrastive term, the
    end of the last phase) is then the last one with floating values, as logits and as feature.

    Attributes:
        module: the captured graph; it may hold inserted ``call_module`` nodes.
        units: in execution order.
        feature_name: the node that feeds the last layer with weights (the penultimate feature); of a network with
            several outputs, ``output_name``.
        placed: where its pieces are computed; None is here.
    """

    module: fx.GraphModule
    units: tuple[Unit, ...]
    feature_name: str
    placed: Placed | None = None

    @property
    def input_name(self) -> str:
        """The node of the images."""
        return input_node(self.module.graph).name

    @property
    def output_name(self) -> str:
        """The node of the logits; of several outputs, the last one with floating values."""
        return str(end_node(self.module.graph).name)

    @property
    def output_names(self) -> tuple[str, ...]:
        """The nodes of all tensors that the network returns, each once, in execution order."""
        return tuple(node.name for node in output_nodes(self.module.graph))

    @property
    def layers(self) -> tuple[str, ...]:
        """The names of the layers that can be quantized, in execution order, each once."""
        return tuple(dict.fromkeys(name for name, _ in weighted_nodes(self.module)))

    @property
    def products(self) -> tuple[str, ...]:
        """The names of the matrix products of activations, as in attention, in execution order."""
        return tuple(product.name for product in find_products(self.module.graph))

    def prefix(self, index: int) -> fx.GraphModule:
        """Images -> the inputs of unit ``index``."""
        return self.subgraph((self.input_name,), self._unit(index).inputs)

    def body(self, index: int) -> fx.GraphModule:
        """The inputs of unit ``index`` -> its outputs; a tensor that only passes by is handed through."""
        unit = self._unit(index)
        return self.subgraph(unit.inputs, unit.outputs)

    def cut_body(self, index: int) -> fx.GraphModule:
        """The same as ``cut`` gives it."""
        unit = self._unit(index)
        return self.cut(unit.inputs, unit.outputs)

    def suffix(self, index: int, read: ReadPoint = "logits") -> fx.GraphModule:
        """The outputs of unit ``index`` -> the logits or the penultimate feature.

        Behind the last unit both are the identity: its output is all that is left.
        """
        if read not in ("logits", "features"):
            raise ArgumentError("read", "'logits' or 'features'", repr(read))
        unit = self._unit(index)
        is_last = unit is self.units[-1]
        return self.subgraph(
            unit.outputs, (self.feature_name if read == "features" and not is_last else self.output_name,)
        )

    def subgraph(self, inputs: Sequence[str], outputs: Sequence[str]) -> fx.GraphModule:
        """The piece that computes the nodes ``outputs`` from the nodes ``inputs``.

        Raises:
            ArgumentError: a name is not in the graph.
            CaptureError: some output needs a value that the inputs do not give.
        """
        piece = self.cut(inputs, outputs)
        return piece if self.placed is None else self.placed(piece, inputs, outputs, None)

    def cut(self, inputs: Sequence[str], outputs: Sequence[str]) -> fx.GraphModule:
        """The same with the weights that are here, wherever the piece is to be computed."""
        return extract(self.module, inputs, outputs)

    def _unit(self, index: int) -> Unit:
        if not 0 <= index < len(self.units):
            raise ArgumentError("index", f"a unit from 0 to {len(self.units) - 1}", index)
        return self.units[index]


def capture(
    model: nn.Module,
    example: Tensor,
    *,
    unit: UnitKind = "block",
    fold: bool = True,
    expand: bool = True,
    patterns: Sequence[str] = (),
) -> Chain:
    """Turn a model into a chain of units.

    Args:
        model: takes one image tensor, returns one tensor or several in any structure; it is left untouched.
        example: images, shape (N, C, H, W) or any (N, ...).
        unit: "block" or "layer".
        fold: whether batch norm is folded into the layers before it.
        expand: whether fused attention is written as its matrix products (``attention.py``), which can be quantized.
        patterns: globs of module paths; each module that matches is one unit.

    Raises:
        ArgumentError: the model refuses the example, or a pattern matches nothing.
        CaptureError: the model cannot be captured; the message names the line.
        NumericalError: a parameter or buffer is not finite.
    """
    module = trace(model, example)
    if expand:
        module = expand_attention(module)
    if fold:
        module = fold_batch_norm(module)
    return Chain(module, group_units(module, unit, patterns), _feature_name(module))


def _feature_name(module: fx.GraphModule) -> str:
    if len(output_nodes(module.graph)) > 1:
        return str(end_node(module.graph).name)
    _, last = weighted_nodes(module)[-1]
    return str(last.args[0])
