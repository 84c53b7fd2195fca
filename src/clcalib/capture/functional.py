"""In-place operators of an exported program are written out of place without tracing it a second time.

``ExportedProgram.run_decompositions`` does that for any program: it computes every operator anew on fake tensors, which
takes longer than the export.  Most of what a convolutional network consists of comes out as it went in; such a program
is rewritten here, node by node, and anything that is not on the lists below is left to torch.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind, OutputKind
from torch.torch_version import TorchVersion

from clcalib.capture.graph import operator_name, symbol_of

_ATEN = torch.ops.aten

# What decomposition leaves alone, and what writes its result into memory of its own.
_KEPT = frozenset(
    {
        _ATEN.adaptive_avg_pool2d.default,
        _ATEN.add.Tensor,
        _ATEN.avg_pool2d.default,
        _ATEN.cat.default,
        _ATEN.conv2d.default,
        _ATEN.div.Tensor,
        _ATEN.elu.default,
        _ATEN.gelu.default,
        _ATEN.hardsigmoid.default,
        _ATEN.hardswish.default,
        _ATEN.hardtanh.default,
        _ATEN.layer_norm.default,
        _ATEN.leaky_relu.default,
        _ATEN.linear.default,
        _ATEN.max_pool2d.default,
        _ATEN.mean.dim,
        _ATEN.mish.default,
        _ATEN.mul.Tensor,
        _ATEN.relu.default,
        _ATEN.relu6.default,
        _ATEN.sigmoid.default,
        _ATEN.silu.default,
        _ATEN.sub.Tensor,
        _ATEN.tanh.default,
    }
)
# The same, but the result is, or may be, the memory of the first argument.
_VIEWS = frozenset({_ATEN.pad.default, _ATEN.permute.default, _ATEN.slice.Tensor, _ATEN.transpose.int})
_IN_PLACE = {
    _ATEN.add_.Tensor: _ATEN.add.Tensor,
    _ATEN.elu_.default: _ATEN.elu.default,
    _ATEN.hardsigmoid_.default: _ATEN.hardsigmoid.default,
    _ATEN.hardswish_.default: _ATEN.hardswish.default,
    _ATEN.hardtanh_.default: _ATEN.hardtanh.default,
    _ATEN.leaky_relu_.default: _ATEN.leaky_relu.default,
    _ATEN.mish_.default: _ATEN.mish.default,
    _ATEN.mul_.Tensor: _ATEN.mul.Tensor,
    _ATEN.relu_.default: _ATEN.relu.default,
    _ATEN.sigmoid_.default: _ATEN.sigmoid.default,
    _ATEN.silu_.default: _ATEN.silu.default,
    _ATEN.sub_.Tensor: _ATEN.sub.Tensor,
    _ATEN.tanh_.default: _ATEN.tanh.default,
}
_DROPOUTS = frozenset({_ATEN.dropout.default, _ATEN.dropout_.default})
_OTHERS = frozenset({_ATEN.batch_norm.default, _ATEN.flatten.using_ints, _ATEN.relu6_.default, _ATEN.sym_size.int})
_KNOWN = _KEPT | _VIEWS | _IN_PLACE.keys() | _DROPOUTS | _OTHERS
_NAMES = {"batch_norm": "batch_norm_default"}  # as ``unlift`` calls it, which puts it back
# From here on, decomposition is known to do what is written here; before, it leaves copies behind and counts otherwise.
IS_KNOWN = TorchVersion(torch.__version__) >= "2.15"
_INPUTS = (InputKind.PARAMETER, InputKind.BUFFER, InputKind.USER_INPUT)


def functional(program: ExportedProgram) -> fx.Graph | None:
    """The graph that ``run_decompositions({})`` makes of a program, in which nothing is written in place.

    The nodes are those that :func:`clcalib.capture.unlift.unlift` makes of torch's own result, under the same names, so
    that it makes no difference for anyone who comes later which of the two was taken.

    Args:
        program: as ``torch.export.export`` returns it; it is left as it is.

    Returns:
        A new graph that takes and returns what the program's does; None where it cannot be told from the lists above
        what torch would make of it: an unknown operator, a tensor that is written while something else refers to its
        memory, several inputs, a device other than the processor, or an older torch.
    """
    if not IS_KNOWN or not _is_known(program):
        return None
    writer = _Writer(_input_of(program))
    return writer.graph if all(writer.write(node) for node in program.graph.nodes) else None


def _is_known(program: ExportedProgram) -> bool:
    nodes, signature = list(program.graph.nodes), program.graph_signature
    called = [node for node in nodes if node.op == "call_function"]
    values = [node.meta.get("val") for node in nodes if node.op == "placeholder"]
    return (
        all(node.op in ("placeholder", "call_function", "output") for node in nodes)
        and all(node.target in _KNOWN for node in called)
        and all(spec.kind in _INPUTS for spec in signature.input_specs)
        and all(spec.kind is OutputKind.USER_OUTPUT for spec in signature.output_specs)
        and len(signature.user_inputs) == 1
        and all(isinstance(value, Tensor) and value.device.type == "cpu" for value in values)
        and not _is_ambiguous(program, called)
    )


def _is_ambiguous(program: ExportedProgram, called: list[fx.Node]) -> bool:
    """Whether an input or a parameter is called like an operator's results, which then get other numbers."""
    specs = program.graph_signature.input_specs
    given = {re.sub(r"(_\d+)+$", "", name) for spec in specs for name in (str(spec.arg.name), str(spec.target))}
    operators = {operator_name(node).rstrip("_") for node in called}
    results = {_NAMES.get(name, name) for name in operators} | {"view", "sym_size_int", "hardtanh"}
    return not given.isdisjoint(results)


def _input_of(program: ExportedProgram) -> fx.Node:
    (name,) = program.graph_signature.user_inputs
    found: fx.Node = next(node for node in program.graph.nodes if node.name == name)
    return found


@dataclass(eq=False)
class _Memory:
    """The memory of a tensor.

    Attributes:
        nodes: of the program, which refer to all of it.
        is_shared: whether anything else does: a view, the caller, the model.
        is_written: whether it was written to; torch makes the views of such a tensor more than once.
    """

    nodes: list[fx.Node]
    is_shared: bool
    is_written: bool = False


class _Writer:
    """Writes the new graph; ``write`` says no where it is in doubt."""

    def __init__(self, images: fx.Node) -> None:
        self.graph = fx.Graph()
        self._images = images
        self._size: fx.Node | None = None
        self._made: dict[fx.Node, fx.Node] = {}
        self._memory: dict[fx.Node, _Memory] = {}

    def write(self, node: fx.Node) -> bool:
        """Append what decomposition makes of a node, or return False."""
        target: Any = node.target
        if node.op == "placeholder":
            self._made[node] = self.graph.node_copy(node)
            self._memory[node] = _Memory([node], is_shared=True)
        elif node.op == "output":
            return self._finish(node)
        elif target is _ATEN.sym_size.int:
            return not node.users
        elif target in _DROPOUTS:
            return node.args[2:] == (False,) and self._pass(node)
        elif target is _ATEN.batch_norm.default:
            return self._norm(node)
        elif target is _ATEN.flatten.using_ints:
            return self._flatten(node)
        elif target is _ATEN.relu6_.default:
            return self._overwrite(node, _ATEN.hardtanh.default, 0, 6)
        elif target in _IN_PLACE:
            return self._overwrite(node, _IN_PLACE[target])
        elif target in _VIEWS:
            return self._call(node, target, *node.args) and self._share(node) and not self._memory[node].is_written
        else:
            return self._call(node, target, *node.args)
        return True

    def _call(self, node: fx.Node, target: torch._ops.OpOverload, *arguments: fx.node.Argument) -> bool:
        name = target._schema.name.removeprefix("aten::")
        own, options = fx.node.map_arg((arguments, node.kwargs), lambda source: self._made.get(source, source))
        made = self.graph.create_node("call_function", target, own, options, _NAMES.get(name, name))
        made.meta = dict(node.meta)
        self._made[node] = made
        self._memory[node] = _Memory([node], is_shared=False)
        return True

    def _norm(self, node: fx.Node) -> bool:
        if len(node.args) != 9 or node.args[5] is not False:  # in training, or with other defaults
            return False
        return self._call(node, _ATEN.batch_norm.default, *node.args[:8], True)

    def _overwrite(self, node: fx.Node, target: torch._ops.OpOverload, *more: fx.node.Argument) -> bool:
        """The result takes the place of what was written to, for all that read it later."""
        written = node.args[0]
        if not isinstance(written, fx.Node) or self._memory[written].is_shared or not _is_alike(node):
            return False
        memory = self._memory[written]
        self._call(node, target, *node.args, *more)
        memory.nodes.append(node)
        memory.is_written = True
        self._memory[node] = memory
        self._made.update(dict.fromkeys(memory.nodes, self._made[node]))
        return True

    def _pass(self, node: fx.Node) -> bool:
        """Nothing is computed; what refers to the argument's memory twice is not written to any more."""
        source = node.args[0]
        assert isinstance(source, fx.Node)
        self._made[node] = self._made[source]
        return self._share(node)

    def _share(self, node: fx.Node) -> bool:
        source = node.args[0]
        assert isinstance(source, fx.Node)
        self._memory[node] = self._memory[source]
        self._memory[node].is_shared = True
        return True

    def _flatten(self, node: fx.Node) -> bool:
        """``flatten`` of a tensor that lies in one piece is a view, with the batch read off the images."""
        source = node.args[0]
        assert isinstance(source, fx.Node)
        before, after, images = source.meta["val"], node.meta["val"], self._images.meta["val"]
        batch = symbol_of(images.shape[0])
        if batch is None or symbol_of(after.shape[0]) != batch or before.ndim == after.ndim:
            return False
        if not before.is_contiguous() or not all(isinstance(size, int) for size in after.shape[1:]):
            return False
        if self._memory[source].is_written:
            return False
        if self._size is None:
            self._size = self._read_size(images.shape[0])
        return self._call(node, _ATEN.view.default, source, [self._size, *after.shape[1:]]) and self._share(node)

    def _read_size(self, size: torch.SymInt) -> fx.Node:
        last = next(node for node in reversed(self.graph.nodes) if node.op == "placeholder")
        with self.graph.inserting_after(last):
            arguments = (self._made[self._images], 0)
            made = self.graph.create_node("call_function", _ATEN.sym_size.int, arguments, name="sym_size_int_1")
        made.meta["val"] = size
        return made

    def _finish(self, node: fx.Node) -> bool:
        """The program returns results of its own, no two of which are in the same memory."""
        results: Any = node.args[0]
        nodes = [result for result in results if isinstance(result, fx.Node)]
        memories = {id(self._memory[result]) for result in nodes}
        if len(memories) < len(results) or any(self._made[result].op == "placeholder" for result in nodes):
            return False
        self.graph.output(tuple(self._made[result] for result in nodes))
        return True


def _is_alike(node: fx.Node) -> bool:
    """Whether all tensors of an in-place operator are of one type, shape and order, as then its result is, too."""
    values = [source.meta["val"] for source in node.all_input_nodes]
    kinds = {(value.dtype, str(tuple(value.shape)), str(value.stride())) for value in values}
    return len(kinds) == 1 and values[0].dtype == torch.float32
