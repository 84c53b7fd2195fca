"""The first images of a stored state, the ranges of activations that are found from them, and nearest rounding."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx

from clcalib.calibrate.store import RowState
from clcalib.capture.chain import Chain
from clcalib.capture.running import State, advance
from clcalib.errors import DeadActivationWarning
from clcalib.quant.grids import activation_range
from clcalib.quant.insert import QuantizedChain, Unquantized
from clcalib.quant.modules import ActivationQuantizer
from clcalib.quant.ranges import RangeRule

RANGE_IMAGES = 256  # images that an activation's range is found from


def take(state: RowState, count: int) -> State:
    """The first ``count`` images of a state, as tensors."""
    return tuple(rows.first(count) for rows in state)


class _RangeFinder(fx.Interpreter):
    """Runs a body once; at each quantizer without a range, finds it from the tensor that arrives there."""

    def __init__(self, body: fx.GraphModule, rule: RangeRule) -> None:
        super().__init__(body)
        self._rule = rule
        self.found: dict[str, ActivationQuantizer] = {}
        self.dead: list[str] = []

    def call_module(self, target: object, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        name = str(target)
        module = self.fetch_attr(name)
        if not isinstance(module, Unquantized):
            return super().call_module(name, args, kwargs)
        tensor = args[0]
        assert isinstance(tensor, Tensor)
        if float(tensor.amin()) == float(tensor.amax()):
            self.dead.append(name)
        self.found[name] = ActivationQuantizer(activation_range(tensor, module.spec, self._rule), module.spec)
        return self.found[name](tensor)


@torch.no_grad()
def find_ranges(
    body: fx.GraphModule, state: State, rule: RangeRule
) -> tuple[dict[str, ActivationQuantizer], list[str], State]:
    """Find the ranges of a unit's activations from what the quantized prefix sends into it.

    Args:
        body: the quantized unit.
        state: its input, (N, ...), N small enough for one pass.
        rule: chooses scale and zero point.

    Returns:
        Quantizers by module name in execution order, the names of those whose tensor is one value everywhere, and the
        outputs of the unit with all of them.
    """
    finder = _RangeFinder(body, rule)
    outputs = finder.run(*state)
    return finder.found, finder.dead, outputs


def round_to_nearest(floating: Chain, quantized: QuantizedChain, images: Tensor, rule: RangeRule) -> None:
    """Give a chain of nearest weights its activation ranges, unit by unit, as the walk does, and nothing else.

    Args:
        floating: says where the units are.
        quantized: changed in place.
        images: ranges are found from the first ``RANGE_IMAGES``; no other image plays a part.
        rule: chooses scale and zero point.
    """
    state: State = (images[:RANGE_IMAGES],)
    for index in range(len(floating.units)):
        found, _, state = find_ranges(quantized.chain.body(index), state, rule)
        for name, quantizer in found.items():
            quantized.replace(name, quantizer)


def round_alone(floating: Chain, quantized: QuantizedChain, images: Tensor, rule: RangeRule) -> None:
    """The same, with every unit's ranges found behind the float prefix, for units that are looked at one by one.

    Args:
        floating: says where the units are, and makes what each reads.
        quantized: changed in place.
        images: ranges are found from the first ``RANGE_IMAGES``.
        rule: chooses scale and zero point.
    """
    state: State = (images[:RANGE_IMAGES],)
    for index, unit in enumerate(floating.units):
        found, _, _ = find_ranges(quantized.chain.subgraph(unit.inputs, unit.outputs), state, rule)
        for name, quantizer in found.items():
            quantized.replace(name, quantizer)
        state = advance(floating.body(index), state)


def dead_activation_warning(unit: str, names: Sequence[str]) -> DeadActivationWarning:
    """The warning for activations without a range."""
    return DeadActivationWarning(
        f"unit {unit}: {len(names)} activation(s) are the same everywhere on the calibration images "
        f"({', '.join(names)}); their range is that value"
    )
