"""What the values of a captured graph are called in ONNX, and what its ends look like."""

from __future__ import annotations

import operator

from torch import fx

from clcalib.capture.graph import input_node, symbol_of, value_of
from clcalib.capture.outputs import output_nodes
from clcalib.export.onnx.call import Names
from clcalib.export.onnx.model import Port
from clcalib.export.onnx.rules import OnnxRules
from clcalib.export.onnx.writer import Writer


def value_names(graph: fx.Graph, writer: Writer) -> Names:
    """The ONNX value of every node: its own name, but for the image and a single output."""
    rules = writer.rules
    writer.reserve(rules.input_name)
    image, outputs = input_node(graph), output_nodes(graph)
    names: Names = {image: rules.input_name}
    if len(outputs) == 1 and outputs[0] is not image:
        names[outputs[0]] = writer.reserve(rules.output_name)
    for node in graph.nodes:
        if node in names or node.op == "output":
            continue
        values = value_of(node)
        if isinstance(values, tuple | list) and node.op == "call_function":
            names[node] = _several(node, len(values), names, writer)
        elif node.target is operator.getitem:
            names[node] = names[node.args[0]][node.args[1]]  # one of several that read the same value
        else:
            names[node] = str(node.target) if node.op == "get_attr" else writer.reserve(node.name)
    return names


def _several(node: fx.Node, count: int, names: Names, writer: Writer) -> tuple[str, ...]:
    """Names of the values of an operator with several results; "" for those that nothing reads."""
    readers = [user for user in node.users if user.target is operator.getitem]
    read = {user.args[1]: user for user in sorted(readers, key=lambda user: user in names)}  # the output has its name
    for user in read.values():
        if user not in names:
            names[user] = writer.reserve(user.name)
    return tuple(str(names[read[place]]) if place in read else "" for place in range(count))


def port_of(node: fx.Node, names: Names, rules: OnnxRules) -> Port:
    """Name, type and shape of an output."""
    value, name = value_of(node), names[node]
    assert isinstance(name, str)
    shape = [_size(size, place, rules) for place, size in enumerate(value.shape)]
    return name, value.dtype, shape


def _size(size: object, place: int, rules: OnnxRules) -> int | str:
    """A number, the batch's name, or a name for what follows the batch in another way (64 windows for each image)."""
    expression = symbol_of(size)
    if expression is None:
        return int(size)  # type: ignore[call-overload, no-any-return]
    if expression.is_Symbol:
        return rules.batch_name
    (symbol, *_) = expression.free_symbols
    return str(expression).replace(str(symbol), rules.batch_name)
