"""Fused attention is written as its parts, so that what its matrix products read can be quantized.

``softmax(scale * q k^T + mask) v``, with ``scale = 1 / sqrt(width of a head)`` unless the model gives another.

Source: Vaswani et al., "Attention Is All You Need" (NeurIPS 2017), equation 1.
"""

from __future__ import annotations

import copy
import math
from typing import Any

import torch
from torch import Tensor, fx
from torch.fx.node import map_arg

from clcalib.capture.graph import arguments_of, operator_name, value_of

_ATEN = torch.ops.aten
_FUSED = "scaled_dot_product_attention"


def expand_attention(module: fx.GraphModule) -> fx.GraphModule:
    """Write every fused attention as two matrix products with the softmax between them.

    What cannot be written with plain sizes stays fused: dropout, and a causal mask over a free number of tokens.

    Args:
        module: a captured graph; it is left as it is.

    Returns:
        A module with outputs equal up to rounding: the fused operator adds up in another order.  ``module`` itself
        where it holds no such operator.
    """
    if not any(_arguments(node) is not None for node in module.graph.nodes):
        return module
    expanded = copy.deepcopy(module)
    for node in list(expanded.graph.nodes):
        arguments = _arguments(node)
        if arguments is not None:
            _expand(expanded, node, arguments)
    expanded.graph.lint()
    return fx.GraphModule(expanded, expanded.graph, class_name="Expanded").eval()


def _arguments(node: fx.Node) -> dict[str, Any] | None:
    """The arguments of a fused attention that can be expanded; None for any other node."""
    if operator_name(node) != _FUSED:
        return None
    arguments = arguments_of(node)
    if not arguments or arguments.get("dropout_p"):
        return None
    sizes = (value_of(arguments[name]).shape[-2] for name in ("query", "key"))
    is_free = arguments.get("is_causal") and not all(isinstance(size, int) for size in sizes)
    return None if is_free else arguments


def _expand(module: fx.GraphModule, node: fx.Node, arguments: dict[str, Any]) -> None:
    query, key, value = (arguments[name] for name in ("query", "key", "value"))
    scale, mask = arguments.get("scale"), arguments.get("attn_mask")
    with module.graph.inserting_before(node):
        if arguments.get("is_causal"):
            mask = _causal_mask(module, node, value_of(query), value_of(key))
        repeats = value_of(query).shape[-3] // value_of(key).shape[-3] if arguments.get("enable_gqa") else 1
        if repeats > 1:  # several heads of queries share one of keys and values
            key, value = (_call(node, _ATEN.repeat_interleave.self_int, part, repeats, -3) for part in (key, value))
        scores = _product(node, query, _call(node, _ATEN.transpose.int, key, -2, -1))
        factor = 1.0 / math.sqrt(value_of(query).shape[-1]) if scale is None else scale
        scores = _call(node, _ATEN.mul.Tensor, scores, factor)
        if mask is None:
            shares = _call(node, _ATEN.softmax.int, scores, -1)
        else:
            is_choice = value_of(mask).dtype == torch.bool
            choice = (_ATEN.where.ScalarOther, mask, scores, -math.inf)
            scores = _call(node, *choice) if is_choice else _call(node, _ATEN.add.Tensor, scores, mask)
            shares = _call(node, _ATEN._safe_softmax.default, scores, -1)  # a row without any token gives zeros
        result = _product(node, shares, value)
    node.replace_all_uses_with(result)
    module.graph.erase_node(node)


def _causal_mask(module: fx.GraphModule, node: fx.Node, query: Tensor, key: Tensor) -> fx.Node:
    name = f"_causal_{node.name}"
    mask = torch.ones(query.shape[-2], key.shape[-2], dtype=torch.bool, device=query.device).tril()
    module.register_buffer(name, mask)
    made = module.graph.get_attr(name)
    made.meta["val"] = query.new_empty(mask.shape, dtype=torch.bool)
    return made


def _product(origin: fx.Node, left: fx.Node, right: fx.Node) -> fx.Node:
    """A matrix product; its value is that of the sum it stands for, as in it torch 2.11 makes a number of a symbol."""
    value = (value_of(left).unsqueeze(-1) * value_of(right).unsqueeze(-3)).sum(-2)
    return _made(origin, _ATEN.matmul.default, (left, right), value)


def _call(origin: fx.Node, target: Any, *arguments: Any) -> fx.Node:
    """A node with its symbolic value."""
    return _made(origin, target, arguments, target(*map_arg(arguments, value_of)))


def _made(origin: fx.Node, target: Any, arguments: tuple[Any, ...], value: Tensor) -> fx.Node:
    """A node that belongs to the module of ``origin``."""
    node = origin.graph.call_function(target, arguments)
    node.meta = {name: value for name, value in origin.meta.items() if name in ("nn_module_stack", "stack_trace")}
    node.meta["val"] = value
    return node
