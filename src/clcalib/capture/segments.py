"""Which tensors are alive between two nodes, where one tensor carries everything, and what lies between such cuts."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate

from torch import Tensor, fx

from clcalib.capture.graph import (
    common_path,
    data_nodes,
    input_node,
    is_elementwise,
    is_weighted,
    module_path,
    symbol_of,
    value_of,
)
from clcalib.capture.outputs import output_nodes


@dataclass(frozen=True, eq=False)
class Segment:
    """A run of nodes."""

    start: int  # position of the first node in the flow
    nodes: tuple[fx.Node, ...]
    weighted: tuple[fx.Node, ...]
    is_branching: bool  # more than one path leads through it

    @property
    def end(self) -> int:
        """The position of the last node in the flow."""
        return self.start + len(self.nodes) - 1

    @cached_property
    def is_elementwise(self) -> bool:
        """Whether every node of the segment is element-wise."""
        return all(is_elementwise(node) for node in self.nodes)

    @cached_property
    def path(self) -> str:
        """The lowest module that holds all nodes."""
        return common_path(module_path(node) for node in self.nodes)


class Flow:
    """The data-dependent nodes of a graph in execution order, and the tensors alive after each.

    Position 0 is the placeholder of the images.  A *cut* is a position after which every live value is a tensor whose
    first dimension is the batch, so that it can be cached and indexed by image.
    """

    def __init__(self, graph: fx.Graph) -> None:
        self.nodes = data_nodes(graph)
        self._members = set(self.nodes)
        self._batch = symbol_of(value_of(input_node(graph)).shape[0])
        self.outputs = output_nodes(graph)
        self._place = {node: position for position, node in enumerate(self.nodes)}
        self._last_reader = self._last_readers()
        self._live = self._sweep()

    def live(self, position: int) -> tuple[fx.Node, ...]:
        """The nodes whose values are still needed after ``position``, in execution order."""
        return self._live[position]

    def is_cut(self, position: int) -> bool:
        """Whether the graph can be divided after ``position``."""
        return all(self._carries_batch(value_of(node)) for node in self.live(position))

    def is_single_cut(self, position: int) -> bool:
        """Whether one tensor alone carries everything across ``position``.

        Outputs of the network that nothing reads any more only wait for its end; they do not count.
        """
        busy = [node for node in self.live(position) if self._last_reader[node] > position]
        is_end = position == len(self.nodes) - 1
        return (len(busy) == 1 or is_end) and self.is_cut(position)

    def is_weighted(self, node: fx.Node) -> bool:
        """Whether the node is a convolution or linear layer."""
        return is_weighted(node, self._members)

    def segments(self) -> list[Segment]:
        """The pieces between neighbouring single-tensor cuts, in execution order; they cover all but the input."""
        ends = [position for position in range(1, len(self.nodes)) if self.is_single_cut(position)]
        if not ends or ends[-1] != len(self.nodes) - 1:
            ends.append(len(self.nodes) - 1)
        starts = [1, *(end + 1 for end in ends[:-1])]
        return [self.segment(start, end) for start, end in zip(starts, ends, strict=True)]

    def divided(self, segment: Segment, longest: int) -> list[Segment]:
        """The pieces of a segment between cuts that one tensor crosses for a reader nearby.

        Tensors that only wait for a reader more than ``longest`` layers with weights behind their maker (the skips of
        a U-Net, the levels of a feature pyramid) travel along.
        """
        layers = [0, *accumulate(self.is_weighted(node) for node in self.nodes)]  # before each position

        def is_near(node: fx.Node, reader: fx.Node, position: int) -> bool:
            place = self._place.get(reader, -1)
            return place > position and layers[place] - layers[self._place[node] + 1] <= longest

        parts, start = [], segment.start
        for position in range(segment.start, segment.end):
            busy = [node for node in self.live(position) if any(is_near(node, user, position) for user in node.users)]
            if len(busy) == 1 and self.is_cut(position):
                parts.append(self.segment(start, position))
                start = position + 1
        return [*parts, self.segment(start, segment.end)]

    def segment(self, start: int, end: int) -> Segment:
        """The nodes at the positions ``start`` to ``end``, both included."""
        nodes = tuple(self.nodes[start : end + 1])
        weighted = tuple(node for node in nodes if self.is_weighted(node))
        return Segment(start, nodes, weighted, any(len(self._sources(node)) > 1 for node in nodes))

    def layer_end(self, position: int) -> int:
        """The position of the last element-wise follower of the layer at ``position``.

        A follower is the sole user of the value before it, comes next, and reads no other data.
        """
        while position + 1 < len(self.nodes):
            node, follower = self.nodes[position], self.nodes[position + 1]
            is_sole_user = list(node.users) == [follower] and self._sources(follower) == [node]
            if not (is_sole_user and is_elementwise(follower)):
                break
            position += 1
        return position

    def _sources(self, node: fx.Node) -> list[fx.Node]:
        return [source for source in node.all_input_nodes if source in self._members]

    def _carries_batch(self, value: object) -> bool:
        return isinstance(value, Tensor) and value.dim() > 0 and symbol_of(value.shape[0]) == self._batch

    def _last_readers(self) -> dict[fx.Node, int]:
        """The position of the last node that reads each one; -1 where none does."""
        place = self._place
        return {node: max((place[user] for user in node.users if user in place), default=-1) for node in self.nodes}

    def _sweep(self) -> list[tuple[fx.Node, ...]]:
        last_use = self._last_reader | dict.fromkeys(self.outputs, len(self.nodes))
        live: dict[fx.Node, None] = {}
        after = []
        for position, node in enumerate(self.nodes):
            live[node] = None
            live = {alive: None for alive in live if last_use[alive] > position}
            after.append(tuple(live))
        return after
