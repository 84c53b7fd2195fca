"""What is measured on the first images of a unit: its error, the sizes of the terms of its loss, what is not finite."""

from __future__ import annotations

import dataclasses
import math

import torch
from torch import Tensor, fx

from clcalib.calibrate.layout import Layout
from clcalib.calibrate.moving import run_batches
from clcalib.calibrate.recipe import Pass, Phase
from clcalib.calibrate.shares import shares
from clcalib.calibrate.store import RowState
from clcalib.calibrate.unit_data import UnitData
from clcalib.capture.running import BATCH, BATCH_BYTES, State, images_at_once
from clcalib.capture.units import Unit
from clcalib.errors import NumericalError
from clcalib.objectives.local import batch_of
from clcalib.objectives.lp import lp_error
from clcalib.quant.kernels import memory_format_of

PROBE_IMAGES = 256  # images that errors and relative weights are measured on


class ProbeError:
    """The reconstruction error of a unit on the first images, added up over the batches of its outputs.

    Args:
        unit: the float unit.
        targets: its outputs.
        layout: how the images are dealt; None where they are all in ``targets``.
    """

    def __init__(self, unit: Unit, targets: RowState, layout: Layout | None = None) -> None:
        self._position, self._axis = unit.outputs.index(unit.target), unit.channel_axis
        self._targets = targets[self._position]
        self.layout = layout or Layout.alone(len(self._targets))
        chosen = self.layout.limited(PROBE_IMAGES)
        self._ends = [start + count for start, count in zip(self.layout.starts, chosen.own_counts, strict=True)]
        self.count = chosen.count
        self._values = [0.0] * len(self._ends)

    def add(self, start: int, outputs: State) -> None:
        """Take in the outputs from row ``start`` on; images of a shard behind its first ones play no part."""
        shard = self.layout.shard_of(start)
        output = outputs[self._position][: max(0, self._ends[shard] - start)]
        if len(output):
            target = self.layout.aligned(self._targets.slice(start, start + len(output)))
            # The order in memory is that in which errors are added up: equal outputs are to have equal errors.
            output = output.contiguous(memory_format=memory_format_of(target))
            error = float(lp_error(output, target, channel_axis=self._axis))
            self._values[shard] += error * len(output) / self.count

    def total(self) -> float:
        """The error, that of the other workers' images with it; all workers ask for it."""
        (value,) = self.layout.total([[value] for value in self._values])
        return value


def stored_error(unit: Unit, outputs: RowState, targets: RowState, layout: Layout | None = None) -> float:
    """The error of outputs that are stored."""
    error, at = ProbeError(unit, targets, layout), unit.outputs.index(unit.target)
    size = max(1, BATCH_BYTES // max(1, 4 * outputs[at].elements))
    for batch in error.layout.batches(size, PROBE_IMAGES):
        error.add(batch.start, tuple(error.layout.aligned(rows.slice(batch.start, batch.stop)) for rows in outputs))
    return error.total()


@torch.no_grad()
def unit_error(
    unit: Unit, body: fx.GraphModule, state: RowState, targets: RowState, layout: Layout | None = None
) -> float:
    """The error of a quantized unit on its stored input."""
    error = ProbeError(unit, targets, layout)
    run_batches(body, state, error.add, PROBE_IMAGES, layout=layout)
    return error.total()


@torch.no_grad()
def term_scales(phase: Phase, hardened: fx.GraphModule, data: UnitData) -> tuple[float, ...]:
    """Weights of the terms; relative ones are made as large as the host's terms for the unit as the phase finds it.

    The outputs of all units inside a whole network are many, and those of one unit large where the images are: there
    the images go through it in parts and the values are averaged over the images; a term that sets images against each
    other (``normalised_crd_nce``) sees those of a part.  So do the images of each shard.
    """
    if not any(term.is_relative for term in phase.terms):
        return tuple(term.weight for term in phase.terms)
    layout, rows = data.layout, list[list[float]]()
    chosen = layout.limited(PROBE_IMAGES)
    for share, start, count in zip(shares(phase, layout), layout.starts, chosen.own_counts, strict=True):
        index = torch.arange(start, start + count, device=data.target.device)
        rows.append([count / chosen.count * value for value in _mean_values(share.phase, hardened, data, index)])
    values = layout.total(rows)
    host = sum(value * term.weight for term, value in zip(phase.terms, values, strict=True) if not term.is_relative)
    scales = []
    for term, own in zip(phase.terms, values, strict=True):
        scales.append(term.weight * host / max(own, 1e-6) if term.is_relative else term.weight)
    return tuple(scales)


def _mean_values(phase: Phase, hardened: fx.GraphModule, data: UnitData, index: Tensor) -> list[float]:
    """The values of all terms on some images, in parts where the images are large."""
    size = images_at_once(hardened)
    is_small = data.inside is None and size >= BATCH
    parts = (index,) if is_small else torch.split(index, _part_size(phase, len(index), size))
    weights = [len(part) / len(index) for part in parts]
    columns = zip(*(_term_values(phase, hardened, data, part) for part in parts), strict=True)
    return [sum(weight * value for weight, value in zip(weights, column, strict=True)) for column in columns]


def _term_values(phase: Phase, hardened: fx.GraphModule, data: UnitData, index: Tensor) -> list[float]:
    """The values of all terms on some images, as many as there are."""
    terms = [dataclasses.replace(term, images=None) for term in phase.terms]
    mixed = data.quantized if phase.quantized_input_probability > 0 else data.floating
    states: dict[Pass, RowState] = {"training": mixed, "quantized": data.quantized}
    outputs = {on: hardened(*(rows.take(index) for rows in states[on])) for on in dict.fromkeys(t.on for t in terms)}
    batches = data.batches(outputs, index, 0.0, [], terms)
    return [float(term.objective(batches[term.on])) for term in terms]


def _part_size(phase: Phase, count: int, wanted: int) -> int:
    """About as many images as wanted, whole groups of those that are compared with each other; no part of one image."""
    group = math.lcm(*(batch_of(term.objective) or 1 for term in phase.terms))
    size = group * max(1, max(2, wanted) // group)
    while size < count and count % size == 1:
        size += group
    return size


def check_finite(body: fx.GraphModule, unit: str) -> None:
    """Raise where something in a finished unit is not finite."""
    for name, tensor in body.state_dict().items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise NumericalError(f"unit {unit}: {name} is not finite after optimisation; try a smaller rate")
