"""What a captured graph returns: one tensor, or several tensors in a structure (a list, a dictionary, a data class)."""

from __future__ import annotations

from typing import Any

import torch.utils._pytree as pytree
from torch import Tensor, fx, nn

from clcalib.capture.graph import data_nodes, value_of

_STRUCTURE = "structure"  # the key in the meta of the graph's output node


def set_output(graph: fx.Graph, values: list[Any], structure: pytree.TreeSpec) -> None:
    """End a graph with its results.

    Args:
        graph: it has no output yet.
        values: nodes and constants, the leaves of the structure.
        structure: what the model makes of them; kept beside the output, which is one node or a flat tuple.
    """
    output = graph.output(values[0] if structure.is_leaf() else tuple(values))
    output.meta[_STRUCTURE] = structure


def output_nodes(graph: fx.Graph) -> tuple[fx.Node, ...]:
    """The nodes whose values the graph returns and that depend on the images, each once, in execution order."""
    returned = set(end_of(graph).all_input_nodes)
    return tuple(node for node in data_nodes(graph) if node in returned)


def end_node(graph: fx.Graph) -> fx.Node:
    """The returned node that stands for all of them: of those with floating values, the one that is computed last."""
    nodes = output_nodes(graph)
    return next((node for node in reversed(nodes) if value_of(node).is_floating_point()), nodes[-1])


def whole(module: fx.GraphModule) -> nn.Module:
    """The captured network with the output that the model has: itself for one tensor, else ``Structured`` around it."""
    return structured(module, module.graph)


def structured(flat: nn.Module, graph: fx.Graph) -> nn.Module:
    """A module that returns what a graph does, with the output that the captured model has."""
    structure = end_of(graph).meta.get(_STRUCTURE)
    return flat if structure is None or structure.is_leaf() else Structured(flat, structure)


class Structured(nn.Module):
    """A network that returns a flat tuple; here its values get back into the structure that the model returns."""

    def __init__(self, flat: nn.Module, structure: pytree.TreeSpec) -> None:
        super().__init__()
        self.flat = flat
        self.structure = structure

    def forward(self, x: Tensor) -> Any:  # one name for the input, as ``torch.export`` finds dynamic shapes by it
        return pytree.tree_unflatten(self.flat(x), self.structure)


def end_of(graph: fx.Graph) -> fx.Node:
    """The node that returns."""
    node: fx.Node = next(node for node in reversed(graph.nodes) if node.op == "output")
    return node
