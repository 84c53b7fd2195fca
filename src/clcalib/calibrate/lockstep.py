"""A piece of a chain, run over the first images in batches that wait for one another at chosen nodes.

What is found at such a node (a range, a rounding) depends on all images and changes what comes behind it.  So every
batch is brought up to the node, and what is alive there is put aside, in the memory budget; of all else only one batch
is there at a time.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn

from clcalib.calibrate.layout import Batch, Layout
from clcalib.calibrate.space import Block, StoreSpace
from clcalib.calibrate.store import RowState
from clcalib.capture.running import State, images_at_once
from clcalib.quant.functional import compiled_passes

_Environment = dict[fx.Node, Any]


class Lockstep:
    """One run of a body; ``advance`` takes all batches to a node, ``values`` reads what has arrived there.

    Args:
        body: the piece; modules are replaced in the run only.
        state: its input.
        count: how many of the images, of all shards, go through it.
        space: where what is put aside is kept.
        layout: how the images are dealt; None where they are all in ``state``.
    """

    def __init__(
        self, body: fx.GraphModule, state: RowState, count: int, space: StoreSpace, layout: Layout | None = None
    ) -> None:
        self.nodes = tuple(body.graph.nodes)
        self.layout = layout or Layout.alone(len(state[0]))
        self.count = self.layout.limited(count).own_count
        self._places = {node: place for place, node in enumerate(self.nodes)}
        self._rows = dict(zip((node for node in self.nodes if node.op == "placeholder"), state, strict=True))
        self._data = _followers(self.nodes)
        self._runner = _Runner(body)
        self._space = space
        self._batches = self.layout.batches(images_at_once(body), count)
        self._place = 0
        self._aside = {batch: _Environment() for batch in self._batches}
        self._blocks: dict[fx.Node, Block] = {}
        self._constants: _Environment = {}

    def replace(self, name: str, module: nn.Module) -> None:
        """From here on, run ``module`` where the body has another one under this name."""
        self._runner.replaced[name] = module

    @torch.no_grad()
    @compiled_passes()
    def advance(self, stop: fx.Node, see: Callable[[int, _Environment], None] | None = None) -> None:
        """Run all batches up to a node, which is not run itself.

        Args:
            stop: the node; not before the one of the last call.
            see: called for each batch with its first row in ``state`` and the values that are alive there, by node.
        """
        place, blocks = self._places[stop], dict[fx.Node, Block]()
        self._constants = {}
        for batch in self._batches:
            environment = self._loaded(batch)
            for node in self.nodes[self._place : place]:
                if node.op != "placeholder" and node in self._data:
                    environment[node] = self._run(node, environment)
                    self._forget(node, environment)
            if see is not None:
                see(batch.start, environment)
            self._put_aside(batch, environment, place, blocks)
        self._place, self._blocks = place, blocks

    def values(self, node: fx.Node, shard: int | None = None) -> Iterator[Tensor]:
        """Batch by batch, the value of a node that is alive where the batches stand; of one own shard, or of all."""
        for batch in self._batches:
            if shard in (None, batch.shard):
                yield self._value(node, batch)

    def run_through(self, see: Callable[[int, State], None]) -> None:
        """Run all batches to the end; ``see`` gets each one's first row in the input, and the outputs."""
        end = self.nodes[-1]
        (outputs,) = end.args
        self.advance(end, lambda start, environment: see(start, tuple(environment[node] for node in outputs)))

    def _run(self, node: fx.Node, environment: _Environment) -> Any:
        for source in node.all_input_nodes:
            if source not in environment:
                environment[source] = self._constant(source)
        self._runner.env = environment
        return self._runner.run_node(node)

    def _constant(self, node: fx.Node) -> Any:
        """What does not depend on the images, a weight say: the same for all batches, computed once for each stop."""
        if node not in self._constants:
            self._constants[node] = self._run(node, self._constants)
        return self._constants[node]

    def _forget(self, node: fx.Node, environment: _Environment) -> None:
        """Let go of what nothing behind a node reads."""
        for source in (node, *node.all_input_nodes):
            if not self._is_read_from(source, self._places[node] + 1):
                environment.pop(source, None)

    def _is_read_from(self, node: fx.Node, place: int) -> bool:
        return any(self._places[user] >= place for user in node.users)

    def _loaded(self, batch: Batch) -> _Environment:
        nodes = [node for node in self._rows if self._is_read_from(node, self._place)]
        return {node: self._value(node, batch) for node in (*nodes, *self._aside[batch])}

    def _value(self, node: fx.Node, batch: Batch) -> Any:
        if node in self._rows:
            return self.layout.aligned(self._rows[node].slice(batch.start, batch.stop))
        value, place = self._aside[batch][node], batch.place
        if not isinstance(value, _Strides):
            return value
        return value.restored(self.layout.aligned(self._blocks[node].span(place, place + batch.stop - batch.start)))

    def _put_aside(self, batch: Batch, environment: _Environment, place: int, blocks: dict[fx.Node, Block]) -> None:
        images = batch.stop - batch.start
        aside = self._aside[batch] = _Environment()
        for node, value in environment.items():
            if node in self._rows or node not in self._data or not self._is_read_from(node, place):
                continue
            if not isinstance(value, Tensor) or value.numel() % images:
                aside[node] = value
                continue
            strides = aside[node] = _Strides.of(value)
            flat = strides.flat(value, images)
            if node not in blocks:
                size = (self.count, flat.shape[1])
                blocks[node] = self._space.allocate(size, value.dtype, value.device, is_passing=True)
            blocks[node].write(batch.place, flat)


class _Runner(fx.Interpreter):
    """Runs single nodes, on other modules where some are replaced."""

    def __init__(self, body: fx.GraphModule) -> None:
        super().__init__(body)
        self.replaced: dict[str, nn.Module] = {}

    def fetch_attr(self, target: str) -> Any:
        return self.replaced[target] if target in self.replaced else super().fetch_attr(target)


@dataclasses.dataclass(frozen=True)
class _Strides:
    """The shape of a tensor and the order in which its axes lie in memory, which arithmetic behind it may depend on."""

    shape: tuple[int, ...]
    order: tuple[int, ...]  # of the axes, the slowest first

    @classmethod
    def of(cls, tensor: Tensor) -> _Strides:
        strides = tensor.stride()
        return cls(tuple(tensor.shape), tuple(sorted(range(tensor.ndim), key=lambda axis: -strides[axis])))

    def flat(self, tensor: Tensor, rows: int) -> Tensor:
        return tensor.permute(self.order).reshape(rows, -1)

    def restored(self, flat: Tensor) -> Tensor:
        back = sorted(range(len(self.order)), key=self.order.__getitem__)
        return flat.reshape([self.shape[axis] for axis in self.order]).permute(back)


def _followers(nodes: Sequence[fx.Node]) -> set[fx.Node]:
    """The placeholders and all that is computed from them, sizes too."""
    found = set[fx.Node]()
    for node in nodes:
        if node.op == "placeholder" or any(source in found for source in node.all_input_nodes):
            found.add(node)
    return found
