"""Matrix products of two tensors that both come from the images, as in attention: layers without a weight."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from torch import fx

from clcalib.capture.graph import data_nodes, module_path, operator_name

# operator -> where its two factors are among the arguments
_FACTORS = {"matmul": (0, 1), "bmm": (0, 1), "mm": (0, 1), "linear": (0, 1), "baddbmm": (1, 2), "addmm": (1, 2)}


@dataclass(frozen=True)
class Product:
    """A product of two data-dependent tensors.

    Attributes:
        name: the module that it is in, and its number there: ``blocks.0.attn.matmul1``.
        node: the operator.
        left, right: its factors.
    """

    name: str
    node: fx.Node
    left: fx.Node
    right: fx.Node


def find_products(graph: fx.Graph) -> list[Product]:
    """The products of a captured graph, in execution order."""
    return list(_find(graph))


def _find(graph: fx.Graph) -> Iterator[Product]:
    data = set(data_nodes(graph))
    counts: Counter[str] = Counter()
    for node in graph.nodes:
        factors = _factors(node)
        if node in data and len(factors) == 2 and all(isinstance(f, fx.Node) and f in data for f in factors):
            path = module_path(node)
            counts[path] += 1
            left, right = factors
            assert isinstance(left, fx.Node)
            assert isinstance(right, fx.Node)
            yield Product(f"{path}.matmul{counts[path]}".lstrip("."), node, left, right)


def _factors(node: fx.Node) -> tuple[object, ...]:
    name = operator_name(node)
    if name == "einsum":
        factors = node.args[1]
        return tuple(factors) if isinstance(factors, list | tuple) else ()
    return tuple(node.args[place] for place in _FACTORS.get(name, ()))
