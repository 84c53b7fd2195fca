"""The rules that group the nodes of a captured graph into units, and the unit itself.

Every position where one tensor carries everything is a cut; the pieces between cuts are atomic.  A piece with more than
one path and a layer with weights is a *branch* (a residual block, attention, squeeze-and-excitation); the lowest module
that holds it is a *block module*, and so are the other modules of its class.  All pieces inside the outermost block
module are one unit; a module with two branches or more (attention, then MLP) is one unit per branch.

A branch of more than ``LARGEST_BRANCH`` layers is held together by long shortcuts (a U-Net, a feature pyramid): it is
divided wherever only these cross, and what is still large after that layer by layer.  Each output of a network that
returns several tensors is the target of a unit, and while it waits for the end it holds nothing together.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from itertools import groupby

from torch import fx

from clcalib.capture.blocks import (
    LARGEST_BRANCH,
    LONGEST_SHORTCUT,
    Group,
    UnitKind,
    attach_weightless,
    block_modules,
    group_segments,
    matched_module,
)
from clcalib.capture.graph import channel_axis, layer_name, module_path, module_stack, value_of
from clcalib.capture.segments import Flow, Segment
from clcalib.errors import ArgumentError, CaptureError


@dataclass(frozen=True)
class Unit:
    """A run of nodes that is calibrated as one.

    Attributes:
        name: the path of its module or layer.
        kind: "layer" (one layer and what follows it element by element) or "block".
        nodes: the data-dependent nodes, in execution order.
        inputs: the tensors alive before it.
        outputs: the tensors alive after it.
        target: the node whose value is reconstructed; one of the outputs.
        layers: the names of its layers with weights (the weight's path without ``.weight``).
        channel_axis: where the target has its channels.
    """

    name: str
    kind: UnitKind
    nodes: tuple[str, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    target: str
    layers: tuple[str, ...]
    channel_axis: int = 1


def group_units(module: fx.GraphModule, kind: UnitKind = "block", patterns: Sequence[str] = ()) -> tuple[Unit, ...]:
    """Divide a captured graph into units, in execution order.

    Args:
        module: what :func:`clcalib.capture.trace.trace` returned, folded or not.
        kind: "block" for the rules above; "layer" for one unit per layer, whose cuts are tuples of live tensors.
        patterns: globs of module paths (``"layer1.*"``); each module that matches is one unit.

    Raises:
        ArgumentError: an unknown kind, or a pattern that matches no module.
        CaptureError: the model has no layer with weights.
    """
    if kind not in ("layer", "block"):
        raise ArgumentError("kind", "'layer' or 'block'", repr(kind))
    flow = Flow(module.graph)
    if not any(flow.is_weighted(node) for node in flow.nodes):
        raise CaptureError("the model has no convolution or linear layer, so there is nothing to quantize")
    modules = dict(entry for node in flow.nodes for entry in module_stack(node))
    _check_patterns(patterns, modules)
    segments = flow.segments()
    if kind == "layer":
        blocks: set[str] = set()
        segments = _layers_of(flow, segments[0].start, segments[-1].end)
    else:
        blocks = block_modules(segments, modules)
        segments = [part for segment in segments for part in _divide_large(flow, segment)]
    if patterns:
        segments = _divide_at_patterns(flow, segments, patterns)
    groups = [group for run in group_segments(segments, blocks, patterns) for group in run]
    return _units(flow, attach_weightless(groups))


def count_single_cuts(module: fx.GraphModule) -> int:
    """How many points inside the graph one tensor alone carries everything across."""
    flow = Flow(module.graph)
    return sum(flow.is_single_cut(position) for position in range(1, len(flow.nodes) - 1))


def _check_patterns(patterns: Sequence[str], modules: Iterable[str]) -> None:
    for pattern in patterns:
        if not any(fnmatchcase(path, pattern) for path in modules if path):
            known = ", ".join(sorted(path for path in modules if path)[:8])
            expected, remedy = "globs that match a module path", f"some paths: {known}"
            raise ArgumentError("unit_patterns (--unit-pattern)", expected, repr(pattern), remedy)


def _layers_of(flow: Flow, start: int, end: int) -> list[Segment]:
    """One segment per layer with its followers, the weightless rest in front; what remains at the end is the last."""
    parts = []
    for position in range(start, end + 1):
        if position >= start and flow.is_weighted(flow.nodes[position]):
            stop = min(flow.layer_end(position), end)
            parts.append(flow.segment(start, stop))
            start = stop + 1
    return [*parts, flow.segment(start, end)] if start <= end else parts


def _divide_large(flow: Flow, segment: Segment) -> list[Segment]:
    """The pieces of a large branch that only its long shortcuts hold together; layers, where a piece is still large."""

    def is_large(piece: Segment) -> bool:
        return piece.is_branching and len(piece.weighted) > LARGEST_BRANCH

    if not is_large(segment):
        return [segment]
    pieces = []
    for piece in flow.divided(segment, LONGEST_SHORTCUT):
        pieces += _layers_of(flow, piece.start, piece.end) if is_large(piece) else [piece]
    return pieces


def _divide_at_patterns(flow: Flow, segments: list[Segment], patterns: Sequence[str]) -> list[Segment]:
    """Divide the segments wherever a module that matches a pattern begins or ends."""
    parts = []
    for segment in segments:
        start = segment.start
        for _, nodes in groupby(segment.nodes, key=lambda node: matched_module(module_path(node), patterns)):
            stop = start + len(list(nodes)) - 1
            parts.append(flow.segment(start, stop))
            start = stop + 1
    return parts


def _units(flow: Flow, groups: Sequence[Group]) -> tuple[Unit, ...]:
    """Units from groups; where the graph cannot be divided behind a group, what follows joins it."""
    units = []
    start = 1
    waiting: list[Group] = []
    for index, group in enumerate(groups):
        waiting.append(group)
        is_last = index == len(groups) - 1
        limit = len(flow.nodes) if is_last else flow.nodes.index(groups[index + 1].weighted[0])
        end = len(flow.nodes) - 1 if is_last else group.segments[-1].end
        while end < limit and not (is_last or flow.is_cut(end)):
            end += 1
        if end < limit:
            units += _units_of(flow, waiting, start, end)
            start, waiting = end + 1, []
    return tuple(_distinct(units))


def _distinct(units: Sequence[Unit]) -> Iterable[Unit]:
    """A module that is called more than once gives units of one name; number them."""
    seen: Counter[str] = Counter()
    for unit in units:
        seen[unit.name] += 1
        yield unit if seen[unit.name] == 1 else replace(unit, name=f"{unit.name}#{seen[unit.name]}")


def _units_of(flow: Flow, groups: Sequence[Group], start: int, end: int) -> list[Unit]:
    """One unit, or several where outputs of the network arise inside: each is the target of a unit of its own."""
    names = [group.name for group in groups]
    name = names[0] if len(names) == 1 else f"{names[0]}+{names[-1]}"
    kind = groups[0].kind if len(groups) == 1 else "block"
    parts = []
    for position in range(start, end):
        head, rest = flow.segment(start, position), flow.segment(position + 1, end)
        is_output = flow.nodes[position] in flow.outputs and flow.is_cut(position)
        if is_output and head.weighted and rest.weighted:
            parts.append(head)
            start = position + 1
    parts.append(flow.segment(start, end))
    if len(parts) == 1:
        return [_unit(flow, parts[0], name, kind)]
    return [_unit(flow, part, f"{name}.part{index}", kind) for index, part in enumerate(parts, start=1)]


def _unit(flow: Flow, whole: Segment, name: str, kind: UnitKind) -> Unit:
    outputs = flow.live(whole.end)
    layers = dict.fromkeys(layer_name(node) for node in whole.weighted)
    target = _target(flow, whole, outputs)
    return Unit(
        name=name,
        kind=kind,
        nodes=tuple(node.name for node in whole.nodes),
        inputs=tuple(node.name for node in flow.live(whole.start - 1)),
        outputs=tuple(node.name for node in outputs),
        target=target.name,
        layers=tuple(layers),
        channel_axis=channel_axis(target, whole.weighted[-1]),
    )


def _target(flow: Flow, unit: Segment, outputs: Sequence[fx.Node]) -> fx.Node:
    """The last layer with its followers, if that value leaves the unit; else the newest value made of it that does.

    Masks and indices are taken only where nothing else is left.
    """
    position = unit.start + unit.nodes.index(unit.weighted[-1])
    tail = flow.nodes[min(flow.layer_end(position), unit.end)]
    floats = [node for node in outputs if value_of(node).is_floating_point()]
    if tail in floats:
        return tail
    made = {tail}
    for node in unit.nodes[unit.nodes.index(tail) + 1 :]:
        if any(source in made for source in node.all_input_nodes):
            made.add(node)
    return next(node for node in (*reversed(floats), *reversed(outputs)) if node in made)
