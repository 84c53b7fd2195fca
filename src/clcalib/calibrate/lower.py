"""Lets the convolutions of a graph compute in bfloat16, with float32 around them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx, nn

from clcalib.calibrate.trainable import TrainableActivation, TrainableWeight
from clcalib.capture.graph import groups_of, operator_name
from clcalib.quant.insert import tensor_at
from clcalib.quant.kernels import add_and_clamp

WEIGHTED = ("conv1d", "conv2d", "linear")
_KEEPS_TYPE = (
    "relu",
    "relu_",
    "relu6",
    "hardtanh",
    "add",
    "max_pool2d",
    "slice",
    "pad",
    "reshape",
)  # as exact in bfloat16 as their inputs
_SMALLEST = {"conv1d": 256, "conv2d": 256, "linear": 65536}  # elements of a weight below which casts cost too much


class Constant(nn.Module):
    """A tensor that does not change while the unit is optimised."""

    value: Tensor

    def __init__(self, value: Tensor) -> None:
        super().__init__()
        self.register_buffer("value", value)

    def forward(self) -> Tensor:
        return self.value


class AddAndClamp(nn.Module):
    """An activation function with the addition before it; in this form both are one pass over memory."""

    def __init__(self, limits: tuple[float, float]) -> None:
        super().__init__()
        self.limits = limits

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        return add_and_clamp(x, residual, self.limits)


def module_of(body: fx.GraphModule, node: Any) -> nn.Module | None:
    """The module that a ``call_module`` node calls, else None."""
    is_call = isinstance(node, fx.Node) and node.op == "call_module"
    return body.get_submodule(str(node.target)) if is_call else None


def set_constant(body: fx.GraphModule, node: fx.Node, argument: int, value: Tensor) -> None:
    """Make an argument of a node a constant."""
    name = f"constant_{argument}_{node.name}"
    body.add_submodule(name, Constant(value))
    with body.graph.inserting_before(node):
        node.update_arg(argument, body.graph.call_module(name))


def lower(body: fx.GraphModule, dtype: torch.dtype, *, casts_inputs: bool) -> None:
    """Compute convolutions and large matrix products in ``dtype``; what the graph returns stays float32.

    Quantizers before such a node write ``dtype``, and read it behind one, so that no pass only casts.  Where the inputs
    of the graph may come in ``dtype``, ``input_dtypes`` says so.

    Args:
        body: a unit or the frozen rest of a network; changed in place, not recompiled.
        dtype: bfloat16.
        casts_inputs: cast the inputs inside the graph.
    """
    lowered = {node for node in body.graph.nodes if _is_lowered(body, node)}
    for node in lowered:
        _lower_parameters(body, node, lowered, dtype)
    low = _low_values(body, lowered)
    for node in body.graph.nodes:
        module = module_of(body, node)
        if isinstance(module, TrainableActivation):
            module.dtype = dtype if node in low else torch.float32
        if node in low and node.op == "placeholder" and not casts_inputs:
            node.meta["dtype"] = dtype
    _insert_casts(body, lowered, low, dtype)
    for node in [node for node in low if node.op == "placeholder" and casts_inputs]:
        with body.graph.inserting_after(node):
            cast = body.graph.call_method("to", (node, dtype))
        for user in [user for user in node.users if user is not cast]:
            user.replace_input_with(node, cast)


def input_dtypes(body: fx.GraphModule) -> tuple[torch.dtype, ...]:
    """The types in which a graph's inputs are wanted."""
    return tuple(node.meta.get("dtype", torch.float32) for node in body.graph.nodes if node.op == "placeholder")


def _is_lowered(body: fx.GraphModule, node: fx.Node) -> bool:
    name = operator_name(node)
    if name not in WEIGHTED or (name != "linear" and groups_of(node) != 1):
        return False
    module = module_of(body, node.args[1])
    weight = module.weight if isinstance(module, TrainableWeight) else getattr(module, "value", None)
    return isinstance(weight, Tensor) and weight.dtype == torch.float32 and weight.numel() >= _SMALLEST[name]


def _lower_parameters(body: fx.GraphModule, node: fx.Node, lowered: set[fx.Node], dtype: torch.dtype) -> None:
    weight = node.args[1]
    module = module_of(body, weight)
    assert isinstance(weight, fx.Node)
    if isinstance(module, Constant):
        set_constant(body, node, 1, module.value.to(dtype))
    elif isinstance(module, TrainableWeight) and all(user in lowered for user in weight.users):
        module.dtype = dtype
    else:
        with body.graph.inserting_before(node):
            node.update_arg(1, body.graph.call_method("to", (weight, dtype)))
    bias = node.args[2] if len(node.args) > 2 else None
    if isinstance(bias, fx.Node) and bias.op == "get_attr":
        set_constant(body, node, 2, tensor_at(body, str(bias.target)).to(dtype))
    elif isinstance(bias, fx.Node):
        with body.graph.inserting_before(node):
            node.update_arg(2, body.graph.call_method("to", (bias, dtype)))


def _low_values(body: fx.GraphModule, lowered: set[fx.Node]) -> set[fx.Node]:
    """The nodes whose value has the low type."""

    def reads_any(user: fx.Node) -> bool:
        is_quantizer = isinstance(module_of(body, user), TrainableActivation)
        return user in lowered or is_quantizer or _keeps_type(body, user)

    low = set(lowered)
    for node in body.graph.nodes:
        if node.op == "placeholder" or isinstance(module_of(body, node), TrainableActivation):
            if any(user in lowered for user in node.users) and all(reads_any(user) for user in node.users):
                low.add(node)
        elif _keeps_type(body, node) and all(source in low for source in node.all_input_nodes):
            low.add(node)
    return low


def _insert_casts(body: fx.GraphModule, lowered: set[fx.Node], low: set[fx.Node], dtype: torch.dtype) -> None:
    for node in list(body.graph.nodes):
        if node in low:
            users, target = [user for user in node.users if not _reads_low(body, user, low)], torch.float32
        else:
            users, target = [user for user in node.users if user in lowered and user.args[0] is node], dtype
        if users:
            with body.graph.inserting_after(node):
                cast = body.graph.call_method("to", (node, target))
            for user in users:
                user.replace_input_with(node, cast)


def _reads_low(body: fx.GraphModule, user: fx.Node, low: set[fx.Node]) -> bool:
    is_any = isinstance(module_of(body, user), TrainableActivation)
    return is_any or ((operator_name(user) in WEIGHTED or _keeps_type(body, user)) and user in low)


def _keeps_type(body: fx.GraphModule, node: fx.Node) -> bool:
    return operator_name(node) in _KEEPS_TYPE or isinstance(module_of(body, node), AddAndClamp)
