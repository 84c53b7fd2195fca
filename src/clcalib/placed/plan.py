"""Which worker has which units: neighbouring ones, so that the most that one of them has in memory is least.

    total of a worker = weights + trained + caches + activation,

weights: the float parameters of its units, twice where a term looks behind the unit (the rest of the network is then
rewritten for speed), and 2 bytes for each code, of nearest rounding and of the result.
trained: of its largest unit, 16 bytes for each weight: the rounding variable, its gradient and both means of Adam.
caches: of the unit whose stores are largest: its quantized input, and beside it either the float input and output or
both outputs, for all images.
activation: of the largest tensor of a batch.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence

import torch
from torch import fx

from clcalib.capture.chain import Chain
from clcalib.capture.graph import data_nodes, value_of, weight_path
from clcalib.capture.outputs import end_of
from clcalib.capture.running import bytes_of_one, images_at_once
from clcalib.capture.units import Unit
from clcalib.errors import ArgumentError
from clcalib.quant.policy import LayerPolicy
from clcalib.team.memory import MemoryPlan, WorkerMemory

_CODE, _TRAINED = 2, 16  # bytes of a code in memory, and of what is trained for a weight


@dataclasses.dataclass(frozen=True)
class Amounts:
    """What decides how much a unit takes.

    Attributes:
        images: of all sets that have stores.
        cache_dtype: as what the float network's values are stored.
        memory_budget: the most that stores have in memory, or None.
        is_trained: whether the recipe has any steps.
        is_read: whether a term looks behind the unit, so that a worker has its weights once more, rewritten for speed.
    """

    images: int
    cache_dtype: torch.dtype = torch.float32
    memory_budget: int | None = None
    is_trained: bool = True
    is_read: bool = False


@dataclasses.dataclass(frozen=True)
class _Load:
    """Of one unit; ``weights`` by name, as a tensor that two units of a worker share is there once."""

    weights: Mapping[str, int]
    codes: int
    trained: int
    caches: int
    activation: int


def planned(chain: Chain, policy: Sequence[LayerPolicy], amounts: Amounts, workers: int) -> MemoryPlan:
    """Deal the units of a chain to workers.

    Args:
        chain: the float chain.
        policy: its table of widths.
        amounts: see there.
        workers: their number.

    Raises:
        ArgumentError: there are not as many pieces that can lie on workers of their own.
    """
    loads = [_load(chain, index, policy, amounts) for index in range(len(chain.units))]
    cuts = _cuts(chain.units)
    if workers > len(cuts) - 1:
        expected = (
            f"at most {len(cuts) - 1}, as the network has {len(chain.units)} units that can be on as many workers"
        )
        raise ArgumentError("workers", expected, workers, "take fewer, or a recipe whose units are layers")

    def memory(first: int, end: int) -> WorkerMemory:
        names = tuple(unit.name for unit in chain.units[first:end])
        return _memory(first, names, loads[first:end])

    @functools.cache
    def best(end: int, count: int) -> tuple[int, tuple[int, ...]]:
        """For the units before a cut on so many workers: the least largest total, and where the workers begin."""
        if count == 1:
            return memory(0, cuts[end]).total, (0,)
        tried = []
        for start in range(count - 1, end):
            most, starts = best(start, count - 1)
            tried.append((max(most, memory(cuts[start], cuts[end]).total), (*starts, cuts[start])))
        return min(tried)

    _, starts = best(len(cuts) - 1, workers)
    return tuple(memory(first, end) for first, end in zip(starts, (*starts[1:], len(chain.units)), strict=True))


def workers_of(plan: MemoryPlan) -> list[int]:
    """By the number of a unit, who has it."""
    return [rank for rank, row in enumerate(plan) for _ in row.names]


def _cuts(units: Sequence[Unit]) -> list[int]:
    """Where a worker's units may begin or end: not between two that share a layer, which is rounded once."""
    spans = dict[str, list[int]]()
    for index, unit in enumerate(units):
        for layer in unit.layers:
            spans.setdefault(layer, []).append(index)
    blocked = {cut for places in spans.values() for cut in range(places[0] + 1, places[-1] + 1)}
    return [cut for cut in range(len(units) + 1) if cut not in blocked]


def _memory(first: int, names: tuple[str, ...], loads: Sequence[_Load]) -> WorkerMemory:
    floats = {name: size for load in loads for name, size in load.weights.items()}
    return WorkerMemory(
        first=first,
        last=first + len(loads) - 1,
        names=names,
        weights=sum(floats.values()) + sum(load.codes for load in loads),
        trained=max(load.trained for load in loads),
        caches=max(load.caches for load in loads),
        activation=max(load.activation for load in loads),
    )


def _load(chain: Chain, index: int, policy: Sequence[LayerPolicy], amounts: Amounts) -> _Load:
    unit, body = chain.units[index], chain.cut_body(index)
    state = body.state_dict()
    quantized = {row.layer for row in policy if row.weight is not None}
    numbers = sum(state[weight_path(layer, state)].numel() for layer in unit.layers if layer in quantized)
    return _Load(
        weights={name: tensor.nbytes * (2 if amounts.is_read else 1) for name, tensor in state.items()},
        codes=2 * _CODE * numbers,
        trained=_TRAINED * numbers if amounts.is_trained else 0,
        caches=_caches(body, amounts),
        activation=images_at_once(body) * max(bytes_of_one(value_of(node)) for node in data_nodes(body.graph)),
    )


def _caches(body: fx.GraphModule, amounts: Amounts) -> int:
    inputs = [node for node in body.graph.nodes if node.op == "placeholder"]
    outputs = [node for node in end_of(body.graph).all_input_nodes if node not in inputs]
    read, made = (sum(bytes_of_one(value_of(node)) for node in nodes) for nodes in (inputs, outputs))
    share = amounts.cache_dtype.itemsize / torch.float32.itemsize
    one = read + max(share * (read + made), share * made + made)
    found = round(one * amounts.images)
    return found if amounts.memory_budget is None else min(found, amounts.memory_budget)
