"""Which tensors are quantized: those that layers with weights and matrix products of activations read, and for a target
whose kernels need more, any other.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import fx

from clcalib.capture.graph import operator_name, weighted_nodes
from clcalib.capture.products import find_products
from clcalib.quant.placement import Placement, named_tensors
from clcalib.quant.policy import LayerPolicy
from clcalib.quant.spec import QuantSpec

# operator -> what its values are like; operators that only hand values on are looked through
_SOURCES = {"softmax": "softmax", "_softmax": "softmax", "_safe_softmax": "softmax", "gelu": "gelu"}
_CARRIERS = ("clone", "alias", "contiguous", "reshape", "expand", "transpose", "permute", "dropout", "to", "type_as")


@dataclass(frozen=True)
class Read:
    """One tensor that one layer or product reads, or that has a name of its own (``named_tensors``).

    Attributes:
        name: of the layer, the product or the tensor; its row in the policy.
        side: which field of that row holds the tensor's spec.
        tensor: the node of the tensor.
    """

    name: str
    side: Literal["input", "right"]
    tensor: fx.Node

    @property
    def key(self) -> str:
        """What the tensor's quantizer is called in ``QuantizedChain.activations``."""
        return self.name if self.side == "input" else f"{self.name}.{self.side}"

    def spec(self, row: LayerPolicy | None) -> QuantSpec | None:
        """What the policy says of the tensor; a product without a row stays in float."""
        if row is None:
            return None
        return row.input if self.side == "input" else row.right

    @property
    def source(self) -> str:
        """``"softmax"`` or ``"gelu"`` where the tensor comes from one, else ``""``."""
        node: object = self.tensor
        while isinstance(node, fx.Node) and operator_name(node) in _CARRIERS:
            node = node.args[0]
        return _SOURCES.get(operator_name(node), "") if isinstance(node, fx.Node) else ""


def find_reads(module: fx.GraphModule, placement: Placement | None = None) -> list[Read]:
    """What the layers and products of a captured graph read, in execution order.

    Args:
        module: a captured graph without quantizers.
        placement: with one, what is read is looked for behind everything that only moves values, and every other tensor
            has an entry of its own, ahead of those of the operators that read it.
    """
    sources = {} if placement is None else placement.sources(module)

    def source(tensor: fx.Node) -> fx.Node:
        return sources.get(tensor, tensor)

    reads: dict[fx.Node, list[Read]] = {}
    for layer, node in weighted_nodes(module):
        if isinstance(node.args[0], fx.Node):
            reads[node] = [Read(layer, "input", source(node.args[0]))]
    for product in find_products(module.graph):
        left = Read(product.name, "input", source(product.left))
        reads[product.node] = [left, Read(product.name, "right", source(product.right))]
    tensors = {} if placement is None else {node: Read(name, "input", node) for name, node in named_tensors(module)}
    found = []
    for node in module.graph.nodes:
        found += reads.get(node, [])
        if node in tensors:
            found.append(tensors[node])
    return found
