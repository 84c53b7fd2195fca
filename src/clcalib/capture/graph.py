"""Facts about a captured dataflow graph, and the extractor that cuts a piece out of it.

A node is *data-dependent* when its value is computed from the values of the images.  Parameters, what is computed from
parameters alone, and sizes (the batch size N as a symbol) are not: they are recomputed wherever they are needed.
"""

from __future__ import annotations

import operator
from collections.abc import Container, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, fx

from clcalib.errors import ArgumentError, CaptureError

_CONVOLUTIONS = (
    "conv1d",
    "conv2d",
    "conv3d",
    "conv_transpose1d",
    "conv_transpose2d",
    "conv_transpose3d",
    "convolution",
)
_SIZE_READERS = ("sym_size", "sym_stride", "sym_numel", "sym_storage_offset")
_ELEMENTWISE = ("batch_norm", "hardtanh", "hardswish", "hardsigmoid", "relu6", "prelu")
_CONTAINERS = ("container.Sequential", "container.ModuleList", "container.ModuleDict")


def operator_name(node: fx.Node) -> str:
    """The name of the aten operator without namespace and overload ("conv2d"), or "" for any other node."""
    target = node.target
    if node.op != "call_function" or not isinstance(target, torch._ops.OpOverload):
        return ""
    return target._schema.name.removeprefix("aten::")


def value_of(node: fx.Node) -> Any:
    """The symbolic value that capture wrote beside the node; an inserted module on one tensor keeps that tensor's."""
    value = node.meta.get("val")
    if value is None and node.op == "call_module" and len(node.all_input_nodes) == 1:
        return value_of(node.all_input_nodes[0])
    return value


def input_node(graph: fx.Graph) -> fx.Node:
    """The placeholder of the images."""
    node: fx.Node = next(node for node in graph.nodes if node.op == "placeholder")
    return node


def data_nodes(graph: fx.Graph) -> list[fx.Node]:
    """The placeholder and every node that depends on its values, in execution order."""
    found: dict[fx.Node, None] = {}
    for node in graph.nodes:
        if node.op == "output" or operator_name(node) in _SIZE_READERS:
            continue
        if node.op == "placeholder" or any(source in found for source in node.all_input_nodes):
            found[node] = None
    return list(found)


def is_convolution(node: fx.Node) -> bool:
    """Whether the node is a convolution of any rank, transposed or not."""
    return operator_name(node) in _CONVOLUTIONS


def is_linear(node: fx.Node) -> bool:
    """Whether the node is a fully connected layer."""
    return operator_name(node) == "linear"


def is_weighted(node: fx.Node, data: Iterable[fx.Node]) -> bool:
    """Whether the node is a layer with weights: a convolution or linear whose second argument is not data-dependent."""
    return (is_convolution(node) or is_linear(node)) and isinstance(node.args[1], fx.Node) and node.args[1] not in data


def is_elementwise(node: fx.Node) -> bool:
    """Whether each output element depends on one element of each input (batch norm in eval mode counts)."""
    if node.op == "call_module":
        return len(node.all_input_nodes) == 1
    if operator_name(node) in _ELEMENTWISE:
        return True
    return isinstance(node.target, torch._ops.OpOverload) and torch.Tag.pointwise in node.target.tags


def module_stack(node: fx.Node) -> list[tuple[str, str]]:
    """The modules in whose forward the node arose, outermost first, as (path, class name)."""
    stack = node.meta.get("nn_module_stack") or {}
    entries = [(str(path), kind if isinstance(kind, str) else _class_name(kind)) for path, kind in stack.values()]
    return [(path, kind) for path, kind in entries if not path.startswith("_empty_nn_module_stack")]


def module_path(node: fx.Node) -> str:
    """The path of the innermost module in whose forward the node arose; "" is the model itself."""
    stack = module_stack(node)
    return stack[-1][0] if stack else ""


def is_container(class_name: str) -> bool:
    """Whether the class only holds other modules (``Sequential``, ``ModuleList``, ``ModuleDict``)."""
    return class_name.endswith(_CONTAINERS)


def common_path(paths: Iterable[str]) -> str:
    """The lowest module that holds all the paths.

    Example:
        >>> common_path(["layer1.0.conv1", "layer1.0.bn1", "layer1.0"])
        'layer1.0'
    """
    parts = [path.split(".") if path else [] for path in paths]
    shared = []
    for level in zip(*parts, strict=False):
        if len(set(level)) > 1:
            break
        shared.append(level[0])
    return ".".join(shared)


def channel_axis(target: fx.Node, layer: fx.Node) -> int:
    """The axis of ``target`` that holds the channels which ``layer`` makes: by their number, else by the layer's kind.

    A convolution has its channels on axis 1, a linear layer on the last; a permutation behind the layer may move them.
    """
    made, shape = value_of(layer), value_of(target).shape
    usual = len(shape) - 1 if is_linear(layer) else 1
    channels = made.shape[-1 if is_linear(layer) else 1]
    fitting = [axis for axis in (usual, 1, len(shape) - 1) if axis < len(shape) and shape[axis] == channels]
    return fitting[0] if fitting else min(usual, len(shape) - 1)


def layer_name(node: fx.Node) -> str:
    """The name of a weighted layer: the path of its weight without ``.weight``."""
    weight = node.args[1]
    if isinstance(weight, fx.Node) and weight.op == "get_attr":
        return str(weight.target).removesuffix(".weight")
    return module_path(node) or node.name


def weight_path(layer: str, names: Container[str]) -> str:
    """The path of a layer's weight, among the names of a state: attention has weights that are not called ``weight``.

    Example:
        >>> weight_path("conv", {"conv.weight"}), weight_path("attention.in_proj_weight", {"attention.in_proj_weight"})
        ('conv.weight', 'attention.in_proj_weight')
    """
    return layer if layer in names else f"{layer}.weight"


def weighted_nodes(module: fx.GraphModule) -> list[tuple[str, fx.Node]]:
    """(layer name, node) of every layer whose weight is a parameter as it stands, in execution order."""
    data = set(data_nodes(module.graph))
    nodes = [node for node in module.graph.nodes if node in data and is_weighted(node, data)]
    return [
        (layer_name(node), node)
        for node in nodes
        if isinstance(node.args[1], fx.Node) and node.args[1].op == "get_attr"
    ]


def arguments_of(node: fx.Node) -> dict[str, Any]:
    """The arguments of an operator by name, defaults included; none where they cannot be told."""
    bound = node.normalized_arguments(fx.GraphModule({}, fx.Graph()), normalize_to_only_use_kwargs=True)
    return {} if bound is None else dict(bound.kwargs)


def groups_of(node: fx.Node) -> int:
    """The number of groups of a convolution; 1 for a linear layer."""
    return int(arguments_of(node).get("groups", 1))


def extract(module: fx.GraphModule, inputs: Sequence[str], outputs: Sequence[str]) -> fx.GraphModule:
    """Cut out the piece of the graph that computes ``outputs`` from ``inputs``.

    Parameters and submodules are shared with ``module`` by reference; sizes are read off the new inputs.

    Args:
        module: a captured graph; it may hold inserted ``call_module`` nodes.
        inputs: names of nodes; the piece takes their tensors by position.
        outputs: names of nodes; the piece returns the tuple of their values.

    Raises:
        ArgumentError: a name is not in the graph.
        CaptureError: some output needs a value that the inputs do not give.
    """
    named = {node.name: node for node in module.graph.nodes}
    for argument, names in (("inputs", inputs), ("outputs", outputs)):
        if unknown := [name for name in names if name not in named]:
            raise ArgumentError(argument, "names of nodes in the graph", ", ".join(unknown))
    given = [named[name] for name in inputs]
    needed = _needed(given, [named[name] for name in outputs])
    graph = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    for node in given:
        copies[node] = graph.placeholder(node.name)
        copies[node].meta = dict(node.meta)
    sizes = _Sizes(graph, given, copies)
    for node in module.graph.nodes:
        if node in needed:
            copies[node] = sizes.rebuild(node) or graph.node_copy(node, lambda source: copies[source])
    graph.output(tuple(copies[named[name]] for name in outputs))
    graph.lint()
    return fx.GraphModule(module, graph, class_name="Piece").train(module.training)


def symbol_of(size: object) -> Any:
    """The symbolic expression of a size, or None when it is a plain number."""
    return size.node.expr if isinstance(size, torch.SymInt) and size.node.expr.free_symbols else None


def _needed(given: Sequence[fx.Node], wanted: Sequence[fx.Node]) -> set[fx.Node]:
    """Everything between the given and the wanted nodes, walking backwards."""
    needed: set[fx.Node] = set()
    stack = [node for node in wanted if node not in given]
    while stack:
        node = stack.pop()
        if node in needed:
            continue
        if node.op == "placeholder":
            names = ", ".join(source.name for source in given) or "nothing"
            raise CaptureError(f"the piece cannot be cut out: it needs {node.name} and is given {names}")
        needed.add(node)
        if _dimension(node, given) is None:
            stack += [source for source in node.all_input_nodes if source not in given]
    return needed


def _dimension(node: fx.Node, given: Sequence[fx.Node]) -> tuple[fx.Node, int, int, int] | None:
    """Where a size can be read off: (tensor, dimension, multiply by, divide by); None for what is no readable size."""
    if operator_name(node) in _SIZE_READERS and node.args[0] in given:
        return None  # it already reads a tensor that the piece is given
    wanted = symbol_of(node.meta.get("val"))
    if wanted is None or len(wanted.free_symbols) != 1:
        return None
    (symbol,) = wanted.free_symbols
    multiply = wanted / symbol
    if not multiply.is_Integer:
        return None
    for source in given:
        value = value_of(source)
        for position, size in enumerate(value.shape if isinstance(value, Tensor) else ()):
            expression = symbol_of(size)
            if expression is not None and (expression / symbol).is_Integer:
                return source, position, int(multiply), int(expression / symbol)
    return None


class _Sizes:
    """Writes the nodes of a new graph that read sizes off its inputs."""

    def __init__(self, graph: fx.Graph, given: Sequence[fx.Node], copies: dict[fx.Node, fx.Node]) -> None:
        self._graph, self._given, self._copies = graph, given, copies

    def rebuild(self, node: fx.Node) -> fx.Node | None:
        """The size that ``node`` stands for, read off an input; None when ``node`` must be copied as it is."""
        place = _dimension(node, self._given)
        if place is None:
            return None
        source, position, multiply, divide = place
        size = self._graph.call_function(torch.ops.aten.sym_size.int, (self._copies[source], position))
        if divide != 1:
            size = self._graph.call_function(operator.floordiv, (size, divide))
        if multiply != 1:
            size = self._graph.call_function(operator.mul, (size, multiply))
        size.meta["val"] = node.meta["val"]
        return size


def _class_name(kind: type) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"
