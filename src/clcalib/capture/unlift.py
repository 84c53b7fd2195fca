"""An exported program becomes a plain functional graph that owns its parameters under their original names."""

from __future__ import annotations

import operator
import sys
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind, OutputKind

from clcalib.capture.graph import data_nodes, is_weighted, module_path, operator_name
from clcalib.capture.outputs import set_output
from clcalib.errors import CaptureError

_ATEN = torch.ops.aten
_BATCH_NORM = "_native_batch_norm_legit_no_training"
_COUNTED = ("add", "mul", "sub")
_FACTORIES = {"new_zeros": 0, "new_ones": 1}


def unlift(program: ExportedProgram, graph: fx.Graph) -> fx.GraphModule:
    """A ``GraphModule`` with ``get_attr`` nodes for parameters, which are copies; it takes one tensor.

    It returns one tensor, or a flat tuple where the model returns several.

    Args:
        program: what was exported.
        graph: the program's own, or the one that :func:`clcalib.capture.functional.functional` makes of it.

    Raises:
        CaptureError: the program changes a buffer, or needs something other than tensors.
    """
    _refuse_state(program)
    graph, root = _own_graph(program, graph)
    _drop_checks(graph)
    _restore_batch_norm(graph)
    _drop_full_slices(graph)
    _gather_tuples(graph)
    _free_factories(graph)
    _free_views(graph)
    graph.eliminate_dead_code()
    _precompute_constants(graph, root)
    graph.eliminate_dead_code()
    graph.lint()
    module = fx.GraphModule({name: root[name] for name in _attributes(graph)}, graph, class_name="Captured")
    return module.eval()


def _refuse_state(program: ExportedProgram) -> None:
    changed = sorted(set(program.graph_signature.buffers_to_mutate.values()))
    if changed:
        raise CaptureError(f"the model changes its buffer `{changed[0]}` in eval mode; a chain of units keeps no state")
    for spec in program.graph_signature.input_specs:
        if spec.kind in (InputKind.CUSTOM_OBJ, InputKind.TOKEN):
            raise CaptureError(f"the model uses `{spec.arg.name}`, which is no tensor; only tensors can be captured")


def _own_graph(program: ExportedProgram, given: fx.Graph) -> tuple[fx.Graph, dict[str, Any]]:
    """A copy of the given graph with parameters as ``get_attr`` nodes, and what those nodes name."""
    signature = program.graph_signature
    names = {spec.arg.name: spec.target for spec in signature.input_specs if spec.kind is not InputKind.USER_INPUT}
    graph = fx.Graph()
    root: dict[str, Any] = {}
    memory: dict[int, Tensor] = {}  # tied parameters stay tied
    copies: dict[fx.Node, fx.Node] = {}
    for node in given.nodes:
        target = names.get(node.name) if node.op == "placeholder" else None
        if node.op == "output":
            outputs = zip(node.args[0], signature.output_specs, strict=True)
            results = [value for value, spec in outputs if spec.kind is OutputKind.USER_OUTPUT]
            values = [copies[value] if isinstance(value, fx.Node) else value for value in results]
            set_output(graph, values, program.call_spec.out_spec)
        elif target is not None:
            source = program.state_dict[target] if target in program.state_dict else program.constants[target]
            root[target] = memory.setdefault(id(source), _private(source))
            copies[node] = graph.get_attr(target)
            copies[node].meta = dict(node.meta)
        else:
            if node.op == "get_attr":  # the body of a control-flow operator
                root[str(node.target)] = getattr(program.graph_module, str(node.target))
            copies[node] = _copy(graph, node, copies)
    return graph, root


def _copy(graph: fx.Graph, node: fx.Node, copies: dict[fx.Node, fx.Node]) -> fx.Node:
    """A copy under the same name, but sums, products and differences are counted anew.

    Decomposition computes sizes with a symbol for the batch, and each step of that takes a name of that kind, so that
    the numbers which are left to the network's own nodes change with torch: ``add_20``, ``add_41``, ...
    """
    name = operator_name(node) or getattr(node.target, "__name__", "")
    if node.op != "call_function" or name not in _COUNTED:
        return graph.node_copy(node, lambda source: copies[source])
    arguments, options = fx.node.map_arg((node.args, node.kwargs), lambda source: copies[source])
    copy = graph.create_node("call_function", node.target, arguments, options, name)
    copy.meta = dict(node.meta)
    return copy


def _private(source: Tensor) -> Tensor:
    copy = source.detach().clone()
    return nn.Parameter(copy, requires_grad=False) if isinstance(source, nn.Parameter) else copy


def _drop_checks(graph: fx.Graph) -> None:
    for node in list(graph.nodes):
        if operator_name(node).startswith(("_assert", "sym_constrain_range")) and not node.users:
            graph.erase_node(node)


def _restore_batch_norm(graph: fx.Graph) -> None:
    """Decomposition writes batch norm as an operator with three results; put the ordinary one back."""
    for node in list(graph.nodes):
        if operator_name(node) != _BATCH_NORM or any(user.args[1] != 0 for user in node.users):
            continue
        image, weight, bias, mean, variance, momentum, epsilon = node.args
        with graph.inserting_before(node):
            arguments = (image, weight, bias, mean, variance, False, momentum, epsilon, True)
            single = graph.call_function(_ATEN.batch_norm.default, arguments)
        for user in list(node.users):
            single.meta = dict(user.meta)
            user.replace_all_uses_with(single)
            graph.erase_node(user)
        single.meta["nn_module_stack"] = node.meta.get("nn_module_stack", {})
        graph.erase_node(node)


def _drop_full_slices(graph: fx.Graph) -> None:
    for node in list(graph.nodes):
        arguments = (*node.args, *(0, 0, sys.maxsize, 1)[len(node.args) - 1 :]) if node.args else ()
        if operator_name(node) == "slice" and arguments[2:] in ((0, sys.maxsize, 1), (None, None, 1)):
            node.replace_all_uses_with(node.args[0])
            graph.erase_node(node)


def _gather_tuples(graph: fx.Graph) -> None:
    """Move every ``getitem`` right behind its producer, so that no tuple is alive between two layers."""
    for node in list(graph.nodes):
        if node.target is operator.getitem and isinstance(node.args[1], int):
            node.args[0].append(node)


def _free_factories(graph: fx.Graph) -> None:
    """``x.new_zeros(sizes)`` reads no value of x; of fixed sizes it is a constant."""
    for node in list(graph.nodes):
        if operator_name(node) not in _FACTORIES or any(isinstance(size, fx.Node) for size in node.args[1]):
            continue
        value = node.meta["val"]
        with graph.inserting_before(node):
            options = {"dtype": value.dtype, "device": value.device}
            constant = graph.call_function(_ATEN.full.default, (node.args[1], _FACTORIES[operator_name(node)]), options)
        constant.meta = dict(node.meta)
        node.replace_all_uses_with(constant)
        graph.erase_node(node)


def _free_views(graph: fx.Graph) -> None:
    """``view`` becomes ``reshape``: the same values, whatever order in memory a cached tensor has."""
    for node in graph.nodes:
        if node.target in (_ATEN.view.default, _ATEN._unsafe_view.default):
            node.target = _ATEN.reshape.default


def _precompute_constants(graph: fx.Graph, root: dict[str, Any]) -> None:
    """What is computed from parameters alone (position tables, masks, normalised weights) is computed once, here."""
    constant = {node for node in graph.nodes if node.op == "get_attr" and isinstance(root[str(node.target)], Tensor)}
    values: dict[fx.Node, Any] = {node: root[str(node.target)] for node in constant}
    data = set(data_nodes(graph))
    for node in list(graph.nodes):
        if not _is_constant(node, constant):
            continue
        constant.add(node)
        arguments, options = fx.node.map_arg((node.args, node.kwargs), lambda source: values[source])
        assert callable(node.target)
        with torch.no_grad():
            values[node] = node.target(*arguments, **options)
    for node in [node for node in graph.nodes if node in constant and node.op == "call_function"]:
        if isinstance(values[node], Tensor) and any(user not in constant for user in node.users):
            name = _constant_name(node, data, root)
            root[name] = values[node].detach().clone()
            with graph.inserting_before(node):
                replacement = graph.get_attr(name)
            replacement.meta = dict(node.meta)
            node.replace_all_uses_with(replacement, delete_user_cb=lambda user: user not in constant)


def _is_constant(node: fx.Node, constant: set[fx.Node]) -> bool:
    target = node.target
    if node.op != "call_function" or not set(node.all_input_nodes) <= constant:
        return False
    if target is operator.getitem:
        return True
    return isinstance(target, torch._ops.OpOverload) and torch.Tag.nondeterministic_seeded not in target.tags


def _constant_name(node: fx.Node, data: set[fx.Node], root: dict[str, Any]) -> str:
    """A computed weight of a layer is called like the layer's weight; any other constant gets a name at the root."""
    for user in node.users:
        name = f"{module_path(user)}.weight".lstrip(".")  # in the model's own forward it has no path
        if is_weighted(user, data) and user.args[1] is node and name not in root:
            return name
    return f"_constant_{node.name}"


def _attributes(graph: fx.Graph) -> set[str]:
    return {str(node.target) for node in graph.nodes if node.op == "get_attr"}
