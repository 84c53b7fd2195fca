"""The ranges of activations that are found from the first images, and nearest rounding."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from functools import partial

from torch import Tensor, fx

from clcalib.calibrate.layout import Layout, device_of
from clcalib.calibrate.lockstep import Lockstep
from clcalib.calibrate.moving import StateWriter, advance_rows
from clcalib.calibrate.space import StoreSpace
from clcalib.calibrate.store import RowState, as_rows
from clcalib.capture.chain import Chain
from clcalib.errors import ClcalibWarning, DeadActivationWarning, OutlierWarning
from clcalib.quant.condense import gathered
from clcalib.quant.grids import activation_range
from clcalib.quant.insert import QuantizedChain, Unquantized
from clcalib.quant.modules import ActivationQuantizer
from clcalib.quant.ranges import RangeRule, has_outliers, is_constant
from clcalib.quant.reads import Read
from clcalib.team.team import Team

RANGE_IMAGES = 256  # images that an activation's range is found from


@dataclasses.dataclass(frozen=True)
class FoundRanges:
    """What ``find_ranges`` found.

    Attributes:
        quantizers: by module name, in execution order.
        dead: the names of those whose tensor is one value everywhere.
        stretched: the names of those with a few values that are far from all others.
        lockstep: has the images at the last of them; it can still be run through, to the outputs with all ranges.
    """

    quantizers: dict[str, ActivationQuantizer]
    dead: list[str]
    stretched: list[str]
    lockstep: Lockstep

    def warnings(self, unit: str) -> list[ClcalibWarning]:
        """What the user should know of the ranges."""
        told: list[ClcalibWarning] = []
        if self.dead:
            told.append(dead_activation_warning(unit, self.dead))
        if self.stretched:
            told.append(
                OutlierWarning(
                    f"unit {unit}: more than half of the values of {len(self.stretched)} activation(s) are below "
                    f"1/10,000 of the largest one ({', '.join(self.stretched)}); a grid for all of them rounds those "
                    "to zero; look for outliers in the images or the weights, or leave the layers in float"
                )
            )
        return told


def find_ranges(
    body: fx.GraphModule, state: RowState, rule: RangeRule, space: StoreSpace, layout: Layout | None = None
) -> FoundRanges:
    """Find the ranges of a unit's activations from what the quantized prefix sends into it.

    Args:
        body: the quantized unit; not changed.
        state: its input; the first ``RANGE_IMAGES`` are looked at.
        rule: chooses scale and zero point.
        space: where values inside the unit are kept for a while.
        layout: how the images are dealt; the ranges are those of all workers' images.
    """
    lockstep, dead, stretched = Lockstep(body, state, RANGE_IMAGES, space, layout), list[str](), list[str]()
    team = lockstep.layout.team
    together = {} if team.workers == 1 else {"together": team.by_worker}
    found = dict[str, ActivationQuantizer]()
    for node in lockstep.nodes:
        name = str(node.target)
        module = body.get_submodule(name) if node.op == "call_module" else None
        if not isinstance(module, Unquantized) or name in found:
            continue
        lockstep.advance(node)
        values = gathered(partial(lockstep.values, node.all_input_nodes[0]), **together)
        if bool(is_constant(values, module.spec).all()):
            dead.append(name)
        # A softmax is meant to be like that.
        if Read("", "input", node.all_input_nodes[0]).source != "softmax" and bool(has_outliers(values, module.spec)):
            stretched.append(name)
        found[name] = ActivationQuantizer(activation_range(values, module.spec, rule), module.spec)
        lockstep.replace(name, found[name])
    return FoundRanges(found, dead, stretched, lockstep)


def round_to_nearest(
    floating: Chain,
    quantized: QuantizedChain,
    images: Tensor,
    rule: RangeRule,
    space: StoreSpace | None = None,
    *,
    team: Team | None = None,
) -> None:
    """Give a chain of nearest weights its activation ranges, unit by unit, as the walk does, and nothing else.

    Args:
        floating: says where the units are.
        quantized: changed in place.
        images: all of them; ranges are found from the first ``RANGE_IMAGES``, as many of each shard as it goes.
        rule: chooses scale and zero point.
        space: where the units' inputs are kept; by default in memory without a limit.
        team: who does which part of the work.
    """
    state, layout = range_rows(floating, images, team or Team())
    round_along(range(len(floating.units)), quantized, state, rule, space or StoreSpace(), layout)


def range_rows(floating: Chain, images: Tensor, team: Team) -> tuple[RowState, Layout]:
    """Of all images the stores of those that ranges are found from, and how they are dealt."""
    own, layout = Layout.of(team, len(images)).heads(images, RANGE_IMAGES, device_of(floating))
    return (as_rows(own),), layout


def round_along(
    units: range, quantized: QuantizedChain, state: RowState, rule: RangeRule, space: StoreSpace, layout: Layout
) -> RowState:
    """The same for neighbouring units, from the stores before them to those behind them."""
    for index in units:
        ranges = find_ranges(quantized.chain.body(index), state, rule, space, layout)
        for name, quantizer in ranges.quantizers.items():
            quantized.replace(name, quantizer)
        writer = StateWriter(quantized.chain.body(index), state, space)
        ranges.lockstep.run_through(writer.append)
        state = writer.finish()
    return state


def round_alone(floating: Chain, quantized: QuantizedChain, images: Tensor, rule: RangeRule) -> None:
    """The same, with every unit's ranges found behind the float prefix, for units that are looked at one by one.

    Args:
        floating: says where the units are, and makes what each reads.
        quantized: changed in place.
        images: ranges are found from the first ``RANGE_IMAGES``.
        rule: chooses scale and zero point.
    """
    space = StoreSpace()
    state: RowState = (as_rows(images[:RANGE_IMAGES]),)
    for index, unit in enumerate(floating.units):
        ranges = find_ranges(quantized.chain.subgraph(unit.inputs, unit.outputs), state, rule, space)
        for name, quantizer in ranges.quantizers.items():
            quantized.replace(name, quantizer)
        state = advance_rows(floating.body(index), state, space)


def dead_activation_warning(unit: str, names: Sequence[str]) -> DeadActivationWarning:
    """The warning for activations without a range."""
    return DeadActivationWarning(
        f"unit {unit}: {len(names)} activation(s) are the same everywhere on the calibration images "
        f"({', '.join(names)}); their range is that value"
    )
