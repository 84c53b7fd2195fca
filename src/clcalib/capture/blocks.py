"""Which neighbouring segments belong to one unit: block modules, the branches inside them, and what has no weights.

A segment with more than one path and a layer with weights is a *branch* (a residual block, attention,
squeeze-and-excitation); the lowest module that holds it is a *block module*, and so are the modules of its class.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from itertools import groupby
from typing import Literal

from torch import fx

from clcalib.capture.graph import common_path, is_container, layer_name, module_path
from clcalib.capture.segments import Segment

UnitKind = Literal["layer", "block"]

LARGEST_BRANCH = 16  # weighted layers; a branch with more (a U-Net, a feature pyramid) is divided
LONGEST_SHORTCUT = 8  # weighted layers; a tensor that waits longer for its reader does not hold a branch together


@dataclass(frozen=True)
class Group:
    """Neighbouring segments that become one unit."""

    name: str
    kind: UnitKind
    segments: tuple[Segment, ...]

    @property
    def weighted(self) -> tuple[fx.Node, ...]:
        return tuple(node for segment in self.segments for node in segment.weighted)


def block_modules(segments: Sequence[Segment], modules: dict[str, str]) -> set[str]:
    """The owners of the branches, and every module of an owner's class; a container or the model stands for itself."""
    branches = [s for s in segments if s.is_branching and 0 < len(s.weighted) <= LARGEST_BRANCH and s.path]
    owners = {segment.path for segment in branches}
    classes = {modules[path] for path in owners if path in modules and not is_container(modules[path])}
    return owners | {path for path, kind in modules.items() if path and kind in classes}


def matched_module(path: str, patterns: Sequence[str]) -> str:
    """The outermost module around ``path`` that matches a pattern; "" if none does."""
    return next((prefix for prefix in _ancestors(path) if any(fnmatchcase(prefix, p) for p in patterns)), "")


def _ancestors(path: str) -> list[str]:
    """The path's modules, outermost first.

    Example:
        >>> _ancestors("layer1.0.conv1")
        ['layer1', 'layer1.0', 'layer1.0.conv1']
    """
    parts = path.split(".")
    return [".".join(parts[: count + 1]) for count in range(len(parts))]


def group_segments(segments: Sequence[Segment], blocks: set[str], patterns: Sequence[str]) -> list[list[Group]]:
    """Neighbouring segments inside one block module form a run; each run is divided into groups."""

    def owner(segment: Segment) -> tuple[str, bool]:
        if matched := matched_module(segment.path, patterns):
            return matched, True
        return next((path for path in _ancestors(segment.path) if path in blocks), ""), False

    runs = []
    for (path, is_forced), members in groupby(segments, key=owner):
        parts = tuple(members)
        if is_forced:
            runs.append([Group(path, "block", parts)])
        elif path:
            runs.append(_divide_block(path, parts))
        else:
            runs.append([Group(*_lone_name(segment), (segment,)) for segment in parts])
    return runs


def _lone_name(segment: Segment) -> tuple[str, UnitKind]:
    """Name and kind of a segment that is in no block module."""
    if len(segment.weighted) == 1:
        return layer_name(segment.weighted[0]), "layer"
    names = [layer_name(node) for node in segment.weighted]
    return common_path(names) or (names[0] if names else ""), "block"


def _divide_block(path: str, segments: tuple[Segment, ...]) -> list[Group]:
    """One group per branch; what lies between two branches goes with the later one unless it is element-wise."""
    branches = [segment for segment in segments if segment.is_branching and segment.weighted]
    if len(branches) < 2:
        return [Group(path, "block", segments)]
    parts: list[list[Segment]] = [[]]
    for segment in segments:
        starts_anew = any(member in branches for member in parts[-1])
        is_follower = segment.is_elementwise and not segment.weighted
        has_branch_ahead = any(branch.start >= segment.start for branch in branches)
        if starts_anew and has_branch_ahead and not is_follower:
            parts.append([])
        parts[-1].append(segment)
    return [Group(_part_name(path, part, index), "block", tuple(part)) for index, part in enumerate(parts, start=1)]


def _part_name(path: str, part: Sequence[Segment], index: int) -> str:
    """The child module that holds the part's layers (``blocks.0.attn``), or the part's number."""
    lowest = common_path(module_path(node) for segment in part for node in segment.weighted)
    return lowest if lowest.startswith(path + ".") else f"{path}.part{index}"


def attach_weightless(groups: Sequence[Group]) -> list[Group]:
    """Element-wise groups go with the unit before, other weightless ones with the unit after, if there is one."""
    done: list[Group] = []
    waiting: tuple[Segment, ...] = ()
    for group in groups:
        if group.weighted:
            done.append(replace(group, segments=waiting + group.segments))
            waiting = ()
        elif done and not waiting and all(segment.is_elementwise for segment in group.segments):
            done[-1] = replace(done[-1], segments=done[-1].segments + group.segments)
        else:
            waiting += group.segments
    if waiting:
        done[-1] = replace(done[-1], segments=done[-1].segments + waiting)
    return done
