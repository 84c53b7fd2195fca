"""A piece of a chain as parts, one for each worker with units in it, which compute what the piece does, bit for bit.

Each part has the very nodes of the piece, those of a rewritten one too.  A tensor that a part reads and that is still
wanted behind it is handed through the part.  So its gradient comes back to the part first, and what the part adds comes
behind that: sums of gradients have the order that they have in the whole piece.
"""

from __future__ import annotations

import dataclasses
import operator
from collections.abc import Sequence
from typing import Any

import torch
from torch import fx, nn

from clcalib.capture.chain import Chain
from clcalib.capture.graph import data_nodes, extract, value_of
from clcalib.capture.outputs import end_of
from clcalib.capture.running import bytes_of_one

_UNIT = "unit"  # the key in the meta of a node


@dataclasses.dataclass(frozen=True)
class Part:
    """What one worker computes of a piece.

    Attributes:
        worker: its rank.
        inputs: the names of the nodes that it reads.
        made: of those that it computes, what is wanted behind it.
        handed: of those that it reads, what is wanted behind it.
        module: inputs -> the tuple of ``made`` and ``handed``.
    """

    worker: int
    inputs: tuple[str, ...]
    made: tuple[str, ...]
    handed: tuple[str, ...]
    module: fx.GraphModule


def mark_units(chain: Chain) -> None:
    """Write beside each node of a chain which unit it is of; copies of the graph keep it."""
    named = {node.name: node for node in chain.module.graph.nodes}
    for index, unit in enumerate(chain.units):
        for name in unit.nodes:
            named[name].meta[_UNIT] = index


def divide(piece: fx.GraphModule, workers: Sequence[int]) -> list[Part]:
    """The parts of a piece, in the order of the workers, which is that of the units.

    Args:
        piece: of a chain whose units are marked; it may be rewritten.
        workers: by the number of a unit, who has it.
    """
    places = _places(piece, workers)
    returned = set(end_of(piece.graph).all_input_nodes)

    def is_wanted_behind(node: fx.Node, worker: int) -> bool:
        return node in returned or any(places.get(user, -1) > worker for user in node.users)

    parts = []
    for worker in sorted({place for place in places.values() if place >= 0}):
        own = [node for node, place in places.items() if place == worker]
        read = [node for node, place in places.items() if place < worker and any(user in own for user in node.users)]
        made = tuple(node.name for node in own if is_wanted_behind(node, worker))
        handed = tuple(node.name for node in read if is_wanted_behind(node, worker))
        inputs = tuple(node.name for node in read)
        parts.append(Part(worker, inputs, made, handed, extract(piece, inputs, (*made, *handed))))
    return parts


def joined(piece: fx.GraphModule, parts: Sequence[Part], modules: Sequence[nn.Module]) -> fx.GraphModule:
    """What computes as the piece does, part after part; the modules take and give what those of the parts do."""
    graph, values = fx.Graph(), dict[str, fx.Node]()
    named = {node.name: node for node in piece.graph.nodes}
    for node in piece.graph.nodes:
        if node.op == "placeholder":
            values[node.name] = graph.placeholder(node.name)
            values[node.name].meta = dict(node.meta)
    for number, part in enumerate(parts):
        call = graph.call_module(f"part_{number}", tuple(values[name] for name in part.inputs))
        call.meta["val"] = _largest(part.module)
        for position, name in enumerate((*part.made, *part.handed)):
            values[name] = graph.call_function(operator.getitem, (call, position))
            values[name].meta = {"val": value_of(named[name])}
    ends: Any = end_of(piece.graph).args[0]
    graph.output(tuple(values[node.name] for node in ends))
    root = {f"part_{number}": module for number, module in enumerate(modules)}
    return fx.GraphModule(root, graph, class_name="Joined").train(piece.training)


def _places(piece: fx.GraphModule, workers: Sequence[int]) -> dict[fx.Node, int]:
    """Of each node that depends on the images, whose it is; -1 of what the piece is given.

    What a rewriting has added is where the latest of its sources is.
    """
    data = data_nodes(piece.graph)
    marked = [workers[node.meta[_UNIT]] for node in data if node.op != "placeholder" and _UNIT in node.meta]
    least, places = min(marked, default=0), dict[fx.Node, int]()
    for node in data:
        if node.op == "placeholder":
            places[node] = -1
            continue
        own = workers[node.meta[_UNIT]] if _UNIT in node.meta else least
        places[node] = max(own, least, *(places[source] for source in node.all_input_nodes if source in places))
    return places


def _largest(module: fx.GraphModule) -> torch.Tensor | None:
    """Of the tensors in a part the one with the most bytes, so that batches are as large as for the whole piece."""
    values = [value_of(node) for node in data_nodes(module.graph)]
    found: torch.Tensor | None = max(values, key=bytes_of_one, default=None)
    return found
