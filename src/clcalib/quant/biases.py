"""The biases of quantized layers: which there are, and one of its own for each call of a layer, since kernels round it
to the steps of what that call reads.
"""

from __future__ import annotations

from collections.abc import Collection

from torch import fx

from clcalib.capture.graph import is_convolution, is_linear, operator_name
from clcalib.quant.insert import tensor_at
from clcalib.quant.modules import IntegerWeight

_CALL = "_of_call_"


def bias_of(node: fx.Node) -> fx.Node:
    """The bias that a layer reads.

    Args:
        node: of ``further_biases``.
    """
    bias = node.args[2]
    assert isinstance(bias, fx.Node)
    return bias


def bias_readers(module: fx.GraphModule) -> dict[str, list[fx.Node]]:
    """Path of a bias -> the layers that read it, all of them with an ``IntegerWeight``, and nothing else reads it.

    Transposed convolutions are left out: in groups, they have their output channels on no axis of the weight.
    """
    readers: dict[str, list[tuple[fx.Node, fx.Node]]] = {}
    for node in module.graph.nodes:
        if node.op == "get_attr":  # each reader may have one of its own
            readers.setdefault(str(node.target), []).extend((user, node) for user in node.users)
    return {
        target: [user for user, _ in pairs]
        for target, pairs in readers.items()
        if pairs and all(_adds(module, user, node) for user, node in pairs)
    }


def _adds(module: fx.GraphModule, layer: fx.Node, bias: fx.Node) -> bool:
    """Whether the layer has integer weights and reads the node as its bias only."""
    if not (is_convolution(layer) or is_linear(layer)) or "transpose" in operator_name(layer):
        return False
    _, weight, own = (*layer.args, None, None)[:3]
    if not isinstance(weight, fx.Node) or weight.op != "call_module" or own is not bias:
        return False
    return isinstance(module.get_submodule(str(weight.target)), IntegerWeight)


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
