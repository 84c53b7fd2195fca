"""What stays in float: every layer with weights and every matrix product that is not quantized, and why."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from torch import Tensor, fx

from clcalib.capture.chain import Chain
from clcalib.capture.graph import data_nodes, is_convolution, is_linear, module_path, operator_name, weighted_nodes
from clcalib.capture.products import find_products

# Operators that multiply matrices, beside convolutions and linear layers.
PRODUCTS = (
    *("matmul", "mm", "bmm", "mv", "dot", "addmm", "addbmm", "baddbmm", "addmv", "einsum", "tensordot"),
    *("bilinear", "_trilinear", "scaled_dot_product_attention", "cdist", "_cdist_forward"),
)
RECURRENT = ("lstm", "gru", "rnn_tanh", "rnn_relu", "lstm_cell", "gru_cell", "rnn_tanh_cell", "rnn_relu_cell")
_NORMS = ("batch_norm", "layer_norm", "native_layer_norm", "group_norm", "instance_norm", "rms_norm")


@dataclass(frozen=True)
class FloatPart:
    """One operator that computes in float.

    Attributes:
        name: of the layer or product, or of the module that the operator is in and its weight.
        operator: what it computes.
        parameters: how many numbers it holds; 0 for a product of two activations.
        reason: why it stays in float.
    """

    name: str
    operator: str
    parameters: int
    reason: str


def float_parts(chain: Chain, reasons: Mapping[str, str]) -> list[FloatPart]:
    """Every operator with weights and every matrix product that stays in float, in execution order.

    Biases of layers are none of them: they are added to the layer's sums.

    Args:
        chain: the float chain.
        reasons: by the name of a layer or a product whose widths are float, why that is; all others are quantized.
    """
    layers = {node: name for name, node in weighted_nodes(chain.module)}
    products = {product.node: product.name for product in find_products(chain.module.graph)}
    named = {**layers, **products}
    found = dict[tuple[str, str], FloatPart]()
    data = set(data_nodes(chain.module.graph))
    for node in chain.module.graph.nodes:
        if node not in data or node.op != "call_function":
            continue
        name = named.get(node)
        if name is not None and name not in reasons:
            continue
        weights = list(_parameters(chain.module, node, data))
        is_product = is_convolution(node) or is_linear(node) or operator_name(node) in (*PRODUCTS, *RECURRENT)
        if name is None and not weights and not is_product:
            continue
        reason = reasons[name] if name is not None else _reason(node, data, bool(weights))
        label = name or _label(node, weights)
        count = sum(tensor.numel() for _, tensor in weights)
        found.setdefault((label, operator_name(node)), FloatPart(label, operator_name(node), count, reason))
    return list(found.values())


def _parameters(module: fx.GraphModule, node: fx.Node, data: set[fx.Node]) -> Iterator[tuple[str, Tensor]]:
    """The floating parameters that an operator reads, straight or through what is computed from them alone."""
    waiting, seen = [source for source in node.all_input_nodes if source not in data], set[fx.Node]()
    while waiting:
        source = waiting.pop(0)
        if source in seen or source in data:
            continue
        seen.add(source)
        if source.op == "get_attr":
            owner, _, name = str(source.target).rpartition(".")
            tensor = getattr(module.get_submodule(owner), name)
            is_number = not isinstance(tensor, Tensor) or tensor.ndim == 0 or not tensor.is_floating_point()
            if not is_number and not name.startswith("_constant_"):
                yield str(source.target), tensor
        waiting += source.all_input_nodes


def _label(node: fx.Node, weights: list[tuple[str, Tensor]]) -> str:
    """The path of the operator's first weight without ``.weight``, else that of its module."""
    if weights:
        return weights[0][0].removesuffix(".weight")
    return module_path(node) or node.name


def _reason(node: fx.Node, data: set[fx.Node], has_weights: bool) -> str:
    name = operator_name(node)
    if is_convolution(node) or is_linear(node):
        is_made = any(source in data for source in node.all_input_nodes[1:2])
        return "its weight is computed from the images" if is_made else "its weight is computed, no parameter"
    if name in RECURRENT:
        return "a recurrent layer, whose products are inside one operator"
    if name.startswith("embedding"):
        return "rows of a table are looked up; nothing is multiplied"
    if name in PRODUCTS and has_weights:
        return "a product with a parameter; written as nn.Linear or nn.functional.linear it is quantized"
    if name in PRODUCTS:
        return "a product of a form that is not quantized; written as torch.matmul of two tensors it is"
    if name == "batch_norm":
        return "no layer of its own stands before it alone, so it is not folded"
    if name in _NORMS:
        return "a normalisation needs more than sums and products of codes"
    return "element by element, no matrix product"
