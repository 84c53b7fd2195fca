"""Which tensors an integer kernel needs quantized, beyond those that layers with weights and products read.

The papers quantize what a convolution or a linear layer reads, and nothing else.  A runtime computes an operator in
integers only if everything that it reads and what it writes is quantized: the result of a convolution in front of an
addition, both summands, the operands of a concatenation, the image.  A quantizer that is put there only when the file
is written was never calibrated; so it is put there before calibration, from what the target says of its kernels.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass

from torch import Tensor, fx

from clcalib.capture.graph import (
    data_nodes,
    is_convolution,
    is_linear,
    layer_name,
    module_path,
    operator_name,
    value_of,
    weighted_nodes,
)
from clcalib.capture.products import find_products

MARK = ":"  # in the names of tensors; a layer or a product has no such name
IMAGE = f"{MARK}image"

# Operators that move values, or take the largest of them, and make none: codes pass through them as they are.
MOVES = frozenset(
    (
        *("view", "reshape", "_unsafe_view", "flatten", "squeeze", "unsqueeze", "permute", "transpose", "t", "clone"),
        *("contiguous", "alias", "detach", "dropout", "slice", "select", "expand", "max_pool1d", "max_pool2d"),
        *("pixel_shuffle", "upsample_nearest2d", "split", "split_with_sizes", "chunk", "unbind"),
        *("getitem", "flip", "roll", "repeat_interleave"),
        *("pad", "constant_pad_nd"),  # with zeros, which are on every grid
    )
)
_OPEN = (-math.inf, math.inf)
_ARITHMETIC = ("add", "sub", "mul", "div")
CLAMPS = ("relu", "relu6", "hardtanh", "clamp")


@dataclass(frozen=True)
class Placement:
    """What a target's kernels compute in integers; what layers and products read is quantized in any case.

    Attributes:
        operators: that are computed in integers where one operand at least comes from an integer kernel, and all come
            from the images; their operands and their result are quantized.
        has_results: whether a convolution needs its result quantized, behind the clamp that its kernel takes in; linear
            layers and products may give floats.
        has_linear_results: whether a linear layer needs its result quantized too.
        is_fused: whether an addition is computed by the kernel of a convolution that it alone reads, so that this
            operand is not quantized.
        moves: operators that hand codes on; they get no quantizer of their own, what they read has it.
    """

    operators: frozenset[str] = frozenset()
    has_results: bool = False
    has_linear_results: bool = False
    is_fused: bool = False
    moves: frozenset[str] = MOVES

    def sources(self, module: fx.GraphModule) -> dict[fx.Node, fx.Node]:
        """Of each tensor that is computed from the images, the tensor whose quantizer it needs.

        That is itself, but where its values only move there from the image or an integer kernel: what a convolution
        reads behind ``convolution -> relu -> max_pool2d`` is quantized behind the ``relu``.
        """
        data = dict.fromkeys(data_nodes(module.graph))
        kernels = {node for _, node in weighted_nodes(module) if self._stores(node)}
        found: dict[fx.Node, fx.Node] = {}
        stored: set[fx.Node] = set()  # what integer kernels store
        for node in data:
            origin = node
            while hands_on(origin, self.moves):
                (origin, *_) = origin.all_input_nodes
            found[node] = origin if origin in stored or origin.op == "placeholder" else node
            if node in kernels or self._is_integer(node, data, [found[n] in stored for n in _operands(node, data)]):
                stored |= {node, result(node)}
        return found

    def wanted(self, module: fx.GraphModule, quantized: Collection[str]) -> dict[fx.Node, str]:
        """Every tensor that must be quantized, and what for.

        Args:
            module: a captured graph without quantizers.
            quantized: names of the layers and products that compute in integers.
        """
        found: dict[fx.Node, str] = {}
        kernels = {node: name for name, node in weighted_nodes(module) if name in quantized}
        kernels |= {product.node: product.name for product in find_products(module.graph) if product.name in quantized}
        sources, stored = self.sources(module), set[fx.Node]()
        for node in sources:
            operands = _operands(node, sources)
            is_stored = node in kernels and self._stores(node)
            is_stored |= self._is_integer(node, sources, [sources[operand] in stored for operand in operands])
            if not is_stored and node not in kernels:
                continue
            name = kernels.get(node, plain_name(node))
            for operand in operands:
                if not self._is_taken_in(node, operand, kernels):
                    found.setdefault(sources[operand], f"input of {name}")
            if is_stored:
                stored |= {node, result(node)}
                if self.has_results:
                    found.setdefault(result(node), f"result of {name}")
        return found

    def _stores(self, node: fx.Node) -> bool:
        """Whether the kernel of a layer gives codes."""
        return is_convolution(node) or (self.has_linear_results and is_linear(node))

    def _is_integer(self, node: fx.Node, data: Collection[fx.Node], are_stored: Iterable[bool]) -> bool:
        """Whether an operator without weights is computed in integers: not on numbers or constants."""
        if plain_name(node) not in self.operators or not is_float(node) or not any(are_stored):
            return False
        has_number = plain_name(node) in _ARITHMETIC and any(isinstance(a, int | float) for a in node.args[:2])
        return not has_number and all(operand in data for operand in node.all_input_nodes if is_float(operand))

    def _is_taken_in(self, node: fx.Node, operand: fx.Node, kernels: Collection[fx.Node]) -> bool:
        """Whether a convolution's kernel computes the addition too; of two such operands, it is the second one's."""
        if not self.is_fused or plain_name(node) != "add":
            return False
        fitting = [o for o in node.all_input_nodes if o in kernels and is_convolution(o) and len(o.users) == 1]
        return bool(fitting) and operand is fitting[-1]


def result(node: fx.Node) -> fx.Node:
    """What a kernel stores: its result, or what a clamp makes of it that it takes in because nobody else reads it.

    Clamping and rounding to a grid may change places: clamp(round(x)) lies between the codes of both bounds.
    """
    users = list(node.users)
    return users[0] if len(users) == 1 and clamp_limits(users[0]) is not None else node


def clamp_limits(node: fx.Node) -> tuple[float, float] | None:
    """Floor and ceiling of a clamp (relu, relu6, hardtanh, clamp with fixed bounds), None for any other node."""
    name = plain_name(node)
    if name not in CLAMPS:
        return None
    if name in ("relu", "relu6"):
        return 0.0, (6.0 if name == "relu6" else math.inf)
    usual = (-1.0, 1.0) if name == "hardtanh" else (None, None)
    given = (*node.args[1:3], *usual[len(node.args[1:3]) :])
    names = ("min_val", "max_val") if name == "hardtanh" else ("min", "max")
    bounds = [node.kwargs.get(key, value) for key, value in zip(names, given, strict=True)]
    limits = [
        infinite if bound is None else bound for bound, infinite in zip(bounds, (-math.inf, math.inf), strict=True)
    ]
    if not all(isinstance(limit, int | float) for limit in limits):
        return None
    return float(limits[0]), float(limits[1])


def named_tensors(module: fx.GraphModule) -> Iterator[tuple[str, fx.Node]]:
    """Every tensor of floats that is computed from the images, with a name that only the float graph decides.

    The image is ``:image``, a layer's result ``LAYER:output``, any other ``MODULE:OPERATORn``: ``layer1.0:add1``.
    """
    layers = {node: layer_name(node) for _, node in weighted_nodes(module)}
    counts: Counter[str] = Counter()
    for node in data_nodes(module.graph):
        if not is_float(node):
            continue
        if node.op == "placeholder":
            yield IMAGE, node
            continue
        stem = f"{layers[node]}{MARK}output" if node in layers else f"{module_path(node)}{MARK}{plain_name(node)}"
        counts[stem] += 1
        yield (stem if node in layers and counts[stem] == 1 else f"{stem}{counts[stem]}"), node


def is_float(node: fx.Node) -> bool:
    """Whether a node's value is a tensor of floats."""
    value = value_of(node)
    return isinstance(value, Tensor) and value.is_floating_point()


def plain_name(node: fx.Node) -> str:
    """The operator without the mark of what is done in place; ``getitem`` for what is taken out of a list."""
    if node.op != "call_function":
        return ""
    return operator_name(node).removesuffix("_") or getattr(node.target, "__name__", "")


def hands_on(node: fx.Node, moves: Collection[str] = MOVES) -> bool:
    """Whether codes pass through a node as they are."""
    return plain_name(node) in moves and not pads_with_numbers(node)


def _operands(node: fx.Node, data: Collection[fx.Node]) -> list[fx.Node]:
    return [operand for operand in node.all_input_nodes if operand in data and is_float(operand)]


def pads_with_numbers(node: fx.Node) -> bool:
    """Whether a padding writes something else than zeros of its own."""
    if plain_name(node) not in ("pad", "constant_pad_nd"):
        return False
    more = node.args[2:]
    if plain_name(node) == "pad":
        mode, value = (*more, "constant", None)[0], node.kwargs.get("value", (*more, None, None)[1])
        return bool(mode == "constant" and value not in (None, 0))
    return bool((*more, node.kwargs.get("value", 0))[0])
