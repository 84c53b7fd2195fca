"""The table of units: what a newcomer prints first."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass

from torch import Tensor, fx

from clcalib.capture.blocks import UnitKind
from clcalib.capture.chain import Chain
from clcalib.capture.coverage import PRODUCTS, RECURRENT
from clcalib.capture.graph import (
    data_nodes,
    groups_of,
    is_convolution,
    is_linear,
    operator_name,
    symbol_of,
    value_of,
    weighted_nodes,
)
from clcalib.capture.products import Product, find_products

Shape = tuple[int | str, ...]

# Operators that need more than additions and comparisons of what they read.
_FLOAT = (
    *("layer_norm", "native_layer_norm", "group_norm", "batch_norm", "instance_norm", "rms_norm"),
    *("softmax", "_softmax", "log_softmax", "sigmoid", "tanh", "gelu", "silu", "silu_", "elu", "exp", "erf", "mish"),
    *("hardsigmoid", "hardswish", "hardswish_", "prelu", "leaky_relu", "mul", "div", "pow", "sqrt", "rsqrt"),
    *("embedding", "embedding_bag", "upsample_bilinear2d", "upsample_bicubic2d", "grid_sampler", "cumsum", *RECURRENT),
)


@dataclass(frozen=True)
class UnitRow:
    """One unit in the table; the batch is "N"; MACs are multiply-accumulates of layers and products for one image."""

    index: int
    name: str
    kind: UnitKind
    input_shapes: tuple[Shape, ...]
    output_shapes: tuple[Shape, ...]
    layers: tuple[str, ...]
    parameters: int
    macs: int
    products: tuple[str, ...] = ()  # of two activations, as in attention


def describe(chain: Chain) -> list[UnitRow]:
    """One row per unit, in execution order."""
    nodes = {node.name: node for node in chain.module.graph.nodes}
    products = {product.node.name: product for product in find_products(chain.module.graph)}
    rows = []
    for index, unit in enumerate(chain.units):
        rows.append(
            UnitRow(
                index=index,
                name=unit.name,
                kind=unit.kind,
                input_shapes=tuple(_shape(value_of(nodes[name])) for name in unit.inputs),
                output_shapes=tuple(_shape(value_of(nodes[name])) for name in unit.outputs),
                layers=unit.layers,
                parameters=sum(parameter.numel() for parameter in chain.body(index).parameters()),
                macs=sum(
                    _product_macs(products[name]) if name in products else _macs(nodes[name]) for name in unit.nodes
                ),
                products=tuple(products[name].name for name in unit.nodes if name in products),
            )
        )
    return rows


def layer_macs(chain: Chain) -> dict[str, int]:
    """Multiply-accumulates for one image of every layer, all its calls together, and of every product."""
    found: Counter[str] = Counter()
    for name, node in weighted_nodes(chain.module):
        found[name] += _macs(node)
    for product in find_products(chain.module.graph):
        found[product.name] += _product_macs(product)
    return dict(found)


def layer_kinds(module: fx.GraphModule) -> dict[str, str]:
    """Of every layer that ``weighted_nodes`` names, its kind in words: "conv2d", "depthwise conv2d", "linear"."""
    return {name: _kind(node) for name, node in weighted_nodes(module)}


def _kind(node: fx.Node) -> str:
    """The operator, and before it how its groups divide the channels."""
    groups, name = groups_of(node), operator_name(node)
    if groups == 1:
        return name
    channels = value_of(node.args[0]).shape[1]  # type: ignore[arg-type]
    return f"{'depthwise' if groups == channels else 'grouped'} {name}"


def float_operators(chain: Chain, quantized: Collection[str]) -> dict[str, int]:
    """How often each operator occurs that computes in float after quantization.

    Additions, pooling, rectifiers and what only moves values are left out: they work on codes as well.

    Args:
        chain: the float chain.
        quantized: names of the layers and products whose inputs are quantized.
    """
    products = find_products(chain.module.graph)
    weighted = {node for _, node in weighted_nodes(chain.module)}
    weighted |= {product.node for product in products if product.name in quantized}
    found: Counter[str] = Counter()
    for node in data_nodes(chain.module.graph):
        name = operator_name(node)
        is_product = name in PRODUCTS or is_convolution(node) or is_linear(node)
        if node not in weighted and (is_product or name in _FLOAT):
            found[name.strip("_")] += 1
    return dict(found.most_common())


def _shape(value: Tensor) -> Shape:
    """Sizes with the batch as N; a multiple of the batch is written 64*N."""
    shape: list[int | str] = []
    for size in value.shape:
        expression = symbol_of(size)
        if expression is None:
            shape.append(int(size))
        else:
            (symbol, *_) = expression.free_symbols
            shape.append(str(expression).replace(str(symbol), "N"))
    return tuple(shape)


def _macs(node: fx.Node) -> int:
    """Multiply-accumulates of a layer for one image: positions times weights read at each."""
    name = operator_name(node)
    if not (is_convolution(node) or name == "linear"):
        return 0
    weight = value_of(node.args[1])  # type: ignore[arg-type]
    is_transposed = name.startswith("conv_transpose") or (name == "convolution" and bool(node.args[6]))
    value = value_of(node.args[0] if is_transposed else node)  # type: ignore[arg-type]
    return _per_image(value) * int(math.prod(weight.shape[1:]))


def _product_macs(product: Product) -> int:
    """Elements of the result times the axis that is summed over; an einsum's axes have no fixed places: 0."""
    is_einsum = operator_name(product.node) == "einsum"
    return 0 if is_einsum else _per_image(value_of(product.node)) * int(value_of(product.left).shape[-1])


def _per_image(value: Tensor) -> int:
    total = 1
    for size in value.shape:
        expression = symbol_of(size)
        total *= int(size) if expression is None else int(expression.subs(dict.fromkeys(expression.free_symbols, 1)))
    return total
