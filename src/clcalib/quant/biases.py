"""A bias of its own for each call of a layer: kernels round it to the steps of what that call reads."""

from __future__ import annotations

from collections.abc import Collection

from torch import fx

from clcalib.capture.graph import is_convolution, is_linear
from clcalib.quant.insert import tensor_at

_CALL = "_of_call_"


def bias_of(node: fx.Node) -> fx.Node:
    """The bias that a layer reads.

    Args:
        node: of ``further_biases``.
    """
    bias = node.args[2]
    assert isinstance(bias, fx.Node)
    return bias


def further_biases(module: fx.GraphModule) -> dict[str, fx.Node]:
    """Name of a bias to come -> node of the layer: each layer but the first that reads one and the same bias."""
    readers: dict[str, list[fx.Node]] = {}
    for node in module.graph.nodes:
        bias = node.args[2] if (is_convolution(node) or is_linear(node)) and len(node.args) > 2 else None
        if isinstance(bias, fx.Node) and bias.op == "get_attr":
            readers.setdefault(str(bias.target), []).append(node)
    return {
        f"{target}{_CALL}{number}": node
        for target, nodes in readers.items()
        for number, node in enumerate(nodes[1:], start=2)
    }


def is_further_bias(name: str) -> bool:
    """Whether ``separate_biases`` gave this name."""
    return _CALL in name and name.rpartition(_CALL)[2].isdecimal()


def separate_biases(module: fx.GraphModule, names: Collection[str]) -> None:
    """Give layers copies of the bias that they share with others, in place; the values stay the same.

    Args:
        module: a graph, with quantizers or without.
        names: of ``further_biases``, those that are wanted.
    """
    for name, node in further_biases(module).items():
        if name not in names:
            continue
        bias = bias_of(node)
        owner, _, own_name = name.rpartition(".")
        module.get_submodule(owner).register_buffer(own_name, tensor_at(module, str(bias.target)).clone())
        with module.graph.inserting_before(node):
            own = module.graph.get_attr(name)
        own.meta = dict(bias.meta)
        node.update_arg(2, own)
    module.recompile()
