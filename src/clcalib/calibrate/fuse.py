"""Rewrites a unit for speed while it is optimised: what stands before a quantizer is taken into it, frozen parts are
computed once, and convolutions run in bfloat16 where asked.
"""

from __future__ import annotations

import math
import operator
from typing import Any

import torch
from torch import Tensor, fx

from clcalib.calibrate.lower import WEIGHTED, AddAndClamp, Constant, lower, module_of, set_constant
from clcalib.calibrate.soft_convolution import join_soft_weights
from clcalib.calibrate.trainable import TrainableActivation, channels_last
from clcalib.capture.graph import operator_name, value_of
from clcalib.quant.insert import tensor_at
from clcalib.quant.modules import IntegerWeight

_aten = torch.ops.aten
_ADD = (_aten.add.Tensor, _aten.add_.Tensor, operator.add)
_RELU = (_aten.relu.default, _aten.relu_.default)
_RELU6 = (_aten.relu6.default, _aten.relu6_.default)
_HARDTANH = (_aten.hardtanh.default, _aten.hardtanh_.default, _aten.clamp.default, _aten.clamp_.default)


def fuse(body: fx.GraphModule, dtype: torch.dtype = torch.float32, *, casts_inputs: bool = True) -> fx.GraphModule:
    """Rewrite a unit (or the frozen rest of a network) in place; its values change by rounding errors only.

    Args:
        body: what is run at every step; it may hold ``TrainableWeight`` and ``TrainableActivation`` modules.
        dtype: in which convolutions compute, float32 or bfloat16.
        casts_inputs: the graph takes float32; else the types that ``lower.input_dtypes`` tells.

    Returns:
        the same module, recompiled.
    """
    _freeze_weights(body)
    for node in list(body.graph.nodes):
        module = module_of(body, node)
        if isinstance(module, TrainableActivation) and module.spec.grid == "uniform":
            _absorb(body, node)
    for node in list(body.graph.nodes):
        limits = _limits(node)
        if limits is not None:
            _join(body, node, limits)
    if dtype != torch.float32:
        lower(body, dtype, casts_inputs=casts_inputs)
        join_soft_weights(body)
    body.graph.eliminate_dead_code()
    body.recompile()
    return body


def _freeze_weights(body: fx.GraphModule) -> None:
    """Every weight that is not trained becomes a constant, channels last."""
    for name, module in list(body.named_modules()):
        if isinstance(module, IntegerWeight):
            body.set_submodule(name, Constant(channels_last(module().detach())))
    for node in list(body.graph.nodes):
        weight = node.args[1] if operator_name(node) in WEIGHTED else None
        if isinstance(weight, fx.Node) and weight.op == "get_attr":
            set_constant(body, node, 1, channels_last(tensor_at(body, str(weight.target))))


def _absorb(body: fx.GraphModule, quantizer: fx.Node) -> None:
    """Take the activation function, and the addition before it, into the quantizer, if nobody else reads them."""
    module = module_of(body, quantizer)
    assert isinstance(module, TrainableActivation)
    source = _only_read_by(quantizer.args[0])
    limits = _limits(source)
    if source is not None and limits is not None:
        module.limits = limits
        quantizer.update_arg(0, source.args[0])
        body.graph.erase_node(source)
        source = _only_read_by(quantizer.args[0])
    summands = _summands(source)
    if summands is not None:
        quantizer.args = summands


def _join(body: fx.GraphModule, node: fx.Node, limits: tuple[float, float]) -> None:
    """Make an activation function and the addition before it one module."""
    name = f"clamped_{node.name}"
    body.add_submodule(name, AddAndClamp(limits))
    summands = _summands(_only_read_by(node.args[0])) or (node.args[0],)
    with body.graph.inserting_before(node):
        joined = body.graph.call_module(name, summands)
    joined.meta = dict(node.meta)
    node.replace_all_uses_with(joined)
    body.graph.erase_node(node)


def _summands(node: fx.Node | None) -> tuple[fx.Node, fx.Node] | None:
    """The two tensors that a node adds, the one that surely has a gradient first: the result takes its type."""
    if node is None or node.target not in _ADD or node.kwargs or len(node.args) != 2:
        return None
    first, second = node.args
    if (
        not isinstance(first, fx.Node)
        or not isinstance(second, fx.Node)
        or not (_is_float(first) and _is_float(second))
    ):
        return None
    return (second, first) if first.op == "placeholder" else (first, second)


def _is_float(node: Any) -> bool:
    """Whether the node's value is surely a tensor of floats, and no index, mask or size."""
    value = value_of(node) if isinstance(node, fx.Node) else None
    return isinstance(value, Tensor) and value.is_floating_point()


def _only_read_by(node: Any) -> fx.Node | None:
    return node if isinstance(node, fx.Node) and node.op == "call_function" and len(node.users) == 1 else None


def _limits(node: fx.Node | None) -> tuple[float, float] | None:
    """Floor and ceiling of an activation function, None if it is not one of those that clamp."""
    if node is None or not _is_float(node.args[0] if node.args else None):
        return None
    if node.target in _RELU:
        return 0.0, math.inf
    if node.target in _RELU6:
        return 0.0, 6.0
    if node.target in _HARDTANH and not node.kwargs:
        lower, upper = (*node.args[1:], None, None)[:2]
        if node.target in _HARDTANH[:2]:
            lower, upper = -1.0 if lower is None else lower, 1.0 if upper is None else upper
        lower, upper = -math.inf if lower is None else lower, math.inf if upper is None else upper
        if isinstance(lower, (int, float)) and isinstance(upper, (int, float)):
            return float(lower), float(upper)
    return None
