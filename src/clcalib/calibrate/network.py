"""The last phase: when all units are done, the network as one unit, with the outputs of all its units as targets."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx

from clcalib.calibrate.curves import CurveRecorder, Curves
from clcalib.calibrate.fuse import fuse
from clcalib.calibrate.guard import GUARD_IMAGES, LOOSE, quantizers_of
from clcalib.calibrate.layout import Layout, device_of
from clcalib.calibrate.moving import advance_rows
from clcalib.calibrate.probes import PROBE_IMAGES, check_finite
from clcalib.calibrate.recipe import Phase
from clcalib.calibrate.streams import counter_hash
from clcalib.calibrate.unit_data import Inside
from clcalib.calibrate.walk import Walk
from clcalib.capture.chain import Chain
from clcalib.capture.running import images_at_once
from clcalib.capture.units import Unit
from clcalib.errors import WorseThanUnitsWarning
from clcalib.hearing import listening
from clcalib.objectives.batch import READS
from clcalib.objectives.lp import lp_error
from clcalib.objectives.network import NetworkReconstruction

NAME = "whole network"
PREFIX = "network"  # of what is saved of it
LEAST_ERROR = 1e-6  # relative to the target's own size; below it a unit is as good as float and is left out of the loss


@dataclasses.dataclass(frozen=True)
class NetworkTrace:
    """What the last phase did: reconstruction errors of the network's end on both image sets, and changed codes.

    Attributes:
        steps: of the phase.
        error_before, error_after: at the network's end, on calibration images.
        held_out_error_before, held_out_error_after: the same on held-out images, or None.
        changed_codes: share of the weights whose code is another than that which the units found.
        curves: its losses.
    """

    steps: int
    error_before: float
    error_after: float
    held_out_error_before: float | None
    held_out_error_after: float | None
    changed_codes: float
    curves: Curves = dataclasses.field(default_factory=Curves)

    @classmethod
    def from_values(cls, values: Mapping[str, Any]) -> NetworkTrace:
        """The trace of ``dataclasses.asdict``, also when that was JSON in between."""
        return cls(**{**values, "curves": Curves.from_values(values["curves"])})


def run_last_phase(walk: Walk, images: Tensor, held_out: Tensor | None) -> NetworkTrace | None:
    """Optimise roundings and activation scales of the whole network together, from what the walk found.

    Args:
        walk: one that has visited all units; its quantized chain is changed.
        images: all calibration images (N, ...).
        held_out: other images, only measured on.

    Returns:
        what was done, or None where the recipe has no last phase.

    Raises:
        NumericalError: a loss or a value is not finite.
    """
    phase = walk.recipe.last_phase
    if phase is None:
        return None
    journal = dataclasses.replace(walk.journal, prefix=PREFIX)
    saved = journal.recall(journal.name(0), walk.quantized)
    if saved is not None:
        return NetworkTrace.from_values(saved.values["trace"])
    with listening() as told:
        trace = _last_phase(walk, phase, images, held_out)
    journal.commit(0, 1, quantizers_of(walk.quantized.chain.module), trace, told)
    return trace


def _last_phase(walk: Walk, phase: Phase, images: Tensor, held_out: Tensor | None) -> NetworkTrace:
    network, codes = _Network.of(walk), _codes(walk)
    walk.observer.unit_started(0, 1, NAME, "network", phase.steps)
    before = network.errors(images)
    other_before = None if held_out is None else network.end_error(held_out)
    inside, found = network.inside(before, phase), quantizers_of(walk.quantized.chain.module)
    curves = CurveRecorder()
    is_sound = not inside.positions or network.optimise(phase, images, inside, curves)
    check_finite(walk.quantized.chain.module, NAME)
    after = network.end_error(images)
    other_after = None if held_out is None else network.end_error(held_out)
    errors = before[-1][0], after, other_before, other_after
    tolerance = walk.guard_tolerance if is_sound else 0.0
    problem = _problem(phase, errors, 0 if held_out is None else len(held_out), tolerance)
    if problem is not None and (walk.is_guarded or not is_sound):
        for name, quantizer in found.items():
            walk.quantized.replace(name, quantizer)
        errors = before[-1][0], before[-1][0], other_before, other_before
        if is_sound:  # else the watchdog has told
            warnings.warn(WorseThanUnitsWarning(problem), stacklevel=4)
    walk.observer.unit_finished(0, NAME, *errors[:2])
    return NetworkTrace(phase.steps, *errors, _changed(codes, _codes(walk)), curves.curves())


def _problem(
    phase: Phase, errors: tuple[float, float, float | None, float | None], held_out: int, tolerance: float | None
) -> str | None:
    """What to tell where the network's end is further from the float one than before, on held-out images if enough."""
    before, after, name = errors[0], errors[1], "calibration"
    if held_out >= GUARD_IMAGES and errors[2] is not None and errors[3] is not None:
        before, after, name = errors[2], errors[3], "held-out"
    if tolerance is None:
        tolerance = LOOSE if phase.needs & READS else 0.0
    if after <= before * (1 + tolerance):
        return None
    return (
        f"the phase {phase.name!r} over the whole network: the error at its end on {name} images is {after:.3g}, and "
        f"{before:.3g} as the units left it, which is kept; smaller rates or more calibration images may help"
    )


@dataclasses.dataclass(frozen=True)
class _Network:
    """The walk over both networks as single units, and the outputs of the units inside, the network's end last.

    Attributes:
        whole: its chains have one unit; its random streams are those of no unit.
        targets: by the name of its node in the float chain, where an inner unit's target has its channels.
    """

    whole: Walk
    targets: dict[str, int]

    @classmethod
    def of(cls, walk: Walk) -> _Network:
        quantized = dataclasses.replace(walk.quantized, chain=_joined(walk.quantized.chain))
        seed = counter_hash(walk.seed, len(walk.floating.units))
        journal = dataclasses.replace(walk.journal, prefix=PREFIX)
        whole = dataclasses.replace(
            walk, floating=_joined(walk.floating), quantized=quantized, seed=seed, journal=journal
        )
        return cls(whole, {unit.target: unit.channel_axis for unit in walk.floating.units})

    def floats(self, names: Sequence[str]) -> fx.GraphModule:
        """Images -> the float network's values at some nodes."""
        chain = self.whole.floating
        return chain.subgraph((chain.input_name,), names)

    def positions(self, names: Sequence[str]) -> tuple[int, ...]:
        """Where the values of nodes stand among the outputs of the one unit."""
        (unit,) = self.whole.floating.units
        return tuple(unit.outputs.index(name) for name in names)

    @torch.no_grad()
    def errors(self, images: Tensor) -> list[tuple[float, float]]:
        """Of each inner unit, on the first images: the reconstruction error, and that of an output of zeros."""
        floats, body = self.floats(list(self.targets)), self.whole.quantized.chain.body(0)
        layout = Layout.of(self.whole.team, len(images))
        own, layout = layout.heads(images, PROBE_IMAGES, device_of(self.whole.floating))
        rows: list[list[list[float]]] = [[] for _ in layout.own_counts]
        for shard, start, stop, _ in layout.batches(images_at_once(body)):
            part = layout.aligned(own[start:stop])
            targets, outputs = floats(part), body(part)
            columns = zip(targets, self.positions(list(self.targets)), self.targets.values(), strict=True)
            pairs = [
                (
                    lp_error(outputs[position], target, channel_axis=axis),
                    lp_error(target, target * 0, channel_axis=axis),
                )
                for target, position, axis in columns
            ]
            rows[shard].append([float(value) * len(part) / layout.count for pair in pairs for value in pair])
        sums = layout.total([[sum(column) for column in zip(*of_one, strict=True)] for of_one in rows])
        return list(zip(sums[::2], sums[1::2], strict=True))

    def end_error(self, images: Tensor) -> float:
        """The reconstruction error at the network's end."""
        return self.errors(images)[-1][0]

    def inside(self, errors: Sequence[tuple[float, float]], phase: Phase) -> Inside:
        """The inner units that are not as good as float; the network's end alone where the phase asks for no other."""
        end = self.whole.floating.output_name
        objectives = [term.objective for term in phase.terms if isinstance(term.objective, NetworkReconstruction)]
        wanted = set(self.targets) if any(own.unit_weight > 0 for own in objectives) else {end}
        columns = zip(self.targets.items(), errors, strict=True)
        kept = [
            (name, axis, error)
            for (name, axis), (error, size) in columns
            if name in wanted and error > LEAST_ERROR * size
        ]
        names = [name for name, _, _ in kept]
        return Inside(
            floats=fuse(self.floats(names), self.whole.dtype),
            positions=self.positions(names),
            errors=tuple(error for _, _, error in kept),
            channel_axes=tuple(axis for _, axis, _ in kept),
            are_ends=tuple(name == end for name in names),
        )

    def optimise(self, phase: Phase, images: Tensor, inside: Inside, curves: CurveRecorder) -> bool:
        """Run the phase; of what it compares with, only the logits of all images are stored.

        Returns:
            whether all losses were finite at the first attempt.
        """
        pair, end = self.whole.pair(images), self.floats((self.whole.floating.output_name,))
        logits = advance_rows(end, pair.floating, self.whole.space, layout=pair.layout)
        return self.whole.optimise(0, (phase,), pair, logits, curves, inside)


def _joined(chain: Chain) -> Chain:
    """The chain with one unit from the images to the network's end; the outputs of the old ones leave it too."""
    targets = dict.fromkeys((*(unit.target for unit in chain.units), chain.feature_name))
    unit = Unit(
        name=NAME,
        kind="block",
        nodes=tuple(name for unit in chain.units for name in unit.nodes),
        inputs=(chain.input_name,),
        outputs=(chain.output_name, *(name for name in targets if name != chain.output_name)),
        target=chain.output_name,
        layers=tuple(dict.fromkeys(layer for unit in chain.units for layer in unit.layers)),
        channel_axis=chain.units[-1].channel_axis,
    )
    return dataclasses.replace(chain, units=(unit,))


def _codes(walk: Walk) -> list[Tensor]:
    return [walk.quantized.weight(layer).codes for layer in walk.quantized.weights]


def _changed(before: Sequence[Tensor], after: Sequence[Tensor]) -> float:
    """The share of codes that differ."""
    differing = sum(int((old != new).sum()) for old, new in zip(before, after, strict=True))
    return differing / max(1, sum(codes.numel() for codes in before))
