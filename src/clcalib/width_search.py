"""Each group of units takes the widths that hurt least within a budget: measured one by one, then an integer programme.

A unit's candidates are measured alone: what it does to the network's outputs when it is rounded to nearest and all else
stays in float (``evaluate/sensitivity.py``).  An integer programme (``quant/allocation.py``) then takes one candidate
for each group, so that the sum is least and the budget (``quant/cost.py``) is kept.  The sum leaves out how errors of
several units act together and what a recipe repairs: it orders choices, it does not predict an accuracy.

Source: HAWQ-V3 (Yao et al., ICML 2021), for the integer programme.
*Deviation*: a sensitivity is the measured divergence of the outputs, not an estimate from second derivatives.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Literal, get_args

from torch import Tensor

from clcalib.calibrate.caches import round_alone
from clcalib.calibrate.observer import Observer
from clcalib.capture.chain import Chain
from clcalib.capture.graph import value_of, weighted_nodes
from clcalib.checks import byte_count
from clcalib.data.calibration import digest
from clcalib.errors import ArgumentError
from clcalib.evaluate.sensitivity import Sensitivity, sensitivities
from clcalib.quant.allocation import Allocation, Option, allocate, least_uses
from clcalib.quant.condense import Histogram
from clcalib.quant.cost import bit_operations_at_8_bits
from clcalib.quant.insert import insert_quantizers
from clcalib.quant.policy import FLOAT_BITS
from clcalib.quant.ranges import RangeRule
from clcalib.quant.spec import MAXIMUM_BITS, MINIMUM_BITS, QParams, QuantSpec
from clcalib.report.record import BudgetRecord, UnitWidths
from clcalib.width_plan import WidthPlan

CANDIDATES = (2, 3, 4, 6, 8)
IMAGES = 256
Per = Literal["unit", "layer"]
Measure = Literal["divergence", "changed"]


@dataclasses.dataclass(frozen=True)
class Budget:
    """What the chosen widths may cost, and how they are chosen.  One of ``size`` and ``cost`` is needed.

    Args:
        size: most bytes of weights in the checkpoint, as a number or as "200KB": packed codes, scales and zero points
            of all layers, and the weights of layers in float; no biases, no header (``quant/cost.py``).
        cost: most bit operations, as a share of those with 8 bits everywhere: W4A8 everywhere is 0.5, W4A4 0.25.
        weights: candidate widths of weights, 2 to 8; none leaves them as ``quantize`` is told.
        activations: the same for activations, where there is a cost, which is all that they take of; none by default.
            Every pair of both is measured.
        per: whether each ``"unit"`` of the recipe has its widths, or each ``"layer"``.
        measure: what is made least: the ``"divergence"`` of the outputs, or the share of images with a ``"changed"``
            class.
        images: how many calibration images it is measured on, the first ones.

    Raises:
        ArgumentError: an argument is out of its range.

    Example:
        >>> Budget(size="200KB").bytes
        200000
    """

    size: int | str | None = None
    cost: float | None = None
    weights: tuple[int, ...] = CANDIDATES
    activations: tuple[int, ...] = ()
    per: Per = "unit"
    measure: Measure = "divergence"
    images: int = IMAGES

    def __post_init__(self) -> None:
        if self.size is None and self.cost is None:
            raise ArgumentError(
                "budget", "a size or a cost", "neither", 'e.g. Budget(size="200KB") or Budget(cost=0.5)'
            )
        _ = self.bytes
        is_number = isinstance(self.cost, int | float) and not isinstance(self.cost, bool)
        if self.cost is not None and not (is_number and 0 < self.cost < math.inf):
            raise ArgumentError("cost", "a share above 0 of the bit operations with 8 bits everywhere", repr(self.cost))
        for name in ("weights", "activations"):
            widths = tuple(getattr(self, name))
            if not all(type(bits) is int and MINIMUM_BITS <= bits <= MAXIMUM_BITS for bits in widths):
                raise ArgumentError(name, "whole numbers of bits from 2 to 8", widths)
            object.__setattr__(self, name, tuple(sorted(set(widths))))
        if self.cost is None and len(self.activations) > 1:
            remedy = "give a cost too, or leave them out: activations have the width that the run is told (--bits)"
            raise ArgumentError("activations", "no candidates where only the size counts", self.activations, remedy)
        if not (self.weights or self.activations):
            raise ArgumentError("weights, activations", "candidate widths of one of them", "none")
        for name, valid in (("per", get_args(Per)), ("measure", get_args(Measure))):
            if getattr(self, name) not in valid:
                raise ArgumentError(name, f"one of {', '.join(valid)}", repr(getattr(self, name)))
        if isinstance(self.images, bool) or not isinstance(self.images, int) or self.images < 1:
            raise ArgumentError("images", "a whole number of images, at least 1", repr(self.images))

    @property
    def bytes(self) -> int | None:
        """The size as a number."""
        return None if self.size is None else byte_count("size", self.size, "leave it out for no bound on the size")


@dataclasses.dataclass(frozen=True)
class Found:
    """What ``search_widths`` returns: the number of the pair that each group takes, and the record."""

    chosen: tuple[int, ...]
    record: BudgetRecord


def search_widths(
    chain: Chain,
    plan: WidthPlan,
    budget: Budget,
    images: Tensor,
    rules: tuple[RangeRule, RangeRule],
    observer: Observer,
) -> Found:
    """Measure the candidates of a plan and choose among them.

    Args:
        chain: the float chain that the plan is of; its output is (N, classes).
        plan: what there is to choose.
        budget: what it may cost.
        images: what is shown; ranges of activations are found from them too  # shape: (N, ...)
        rules: of the ranges of weights and of activations.
        observer: told of each pair of widths and of each unit.

    Raises:
        ArgumentError: the budget cannot be kept; told before anything is measured.
    """
    full = bit_operations_at_8_bits(chain)
    bounds = [budget.bytes, None if budget.cost is None else math.floor(budget.cost * full)]
    _check_reachable(plan, bounds, full)
    measured = measure_widths(chain, plan, images, budget.images, rules, observer)
    values = [
        [sum(getattr(measured[number][unit], budget.measure) for unit in group.units) for number in group.pairs]
        for group in plan.groups
    ]
    kept = [place for place, bound in enumerate(bounds) if bound is not None]
    groups = [
        [
            Option(value, tuple((size, cost)[place] for place in kept))
            for value, size, cost in zip(own, group.sizes, group.costs, strict=True)
        ]
        for own, group in zip(values, plan.groups, strict=True)
    ]
    found = allocate(groups, [bound for bound in bounds if bound is not None], plan.links)
    chosen = tuple(group.pairs[place] for group, place in zip(plan.groups, found.chosen, strict=True))
    return Found(chosen, _record(chain, plan, budget, values, found, full, min(len(images), budget.images)))


def measure_widths(
    chain: Chain,
    plan: WidthPlan,
    images: Tensor,
    count: int,
    rules: tuple[RangeRule, RangeRule],
    observer: Observer,
) -> list[dict[int, Sensitivity]]:
    """For each pair of widths of a plan, the sensitivity of every unit to which it is a candidate, by its number.

    Args:
        chain: the float chain.
        plan: says which pair is a candidate to which unit.
        images: ranges of activations are found from them  # shape: (N, ...)
        count: sensitivities are measured on the first of them.
        rules: of the ranges of weights and of activations.
        observer: told of each pair and each unit.
    """
    weight_rule, numbers = _remembered(rules[0]), {unit.name: index for index, unit in enumerate(chain.units)}
    found: list[dict[int, Sensitivity]] = []
    for number, (pair, policy) in enumerate(zip(plan.pairs, plan.policies, strict=True)):
        units = {unit for group in plan.groups if number in group.pairs for unit in group.units}
        observer.stage(f"sensitivities at {pair}, {number + 1} of {len(plan.pairs)}")
        if not units:
            found.append({})
            continue
        quantized = insert_quantizers(chain, policy, weight_rule, plan.placement)
        round_alone(chain, quantized, images, rules[1])

        def told(index: int, name: str) -> None:
            observer.unit_started(index, len(chain.units), name, chain.units[index].kind, 0)

        own = sensitivities(chain, quantized.chain, images[:count], units=units, told=told)
        found.append({numbers[name]: value for name, value in own.items()})
    return found


def _remembered(rule: RangeRule) -> RangeRule:
    """The rule, which looks at each weight once for each width, whatever the activations' width."""
    known: dict[tuple[str, QuantSpec], QParams] = {}

    def remembered(tensor: Tensor | Histogram, spec: QuantSpec) -> QParams:
        if not isinstance(tensor, Tensor):  # of an activation
            return rule(tensor, spec)
        key = digest(tensor), spec
        if key not in known:
            known[key] = rule(tensor, spec)
        return known[key]

    return remembered


def _check_reachable(plan: WidthPlan, bounds: Sequence[int | None], full: int) -> None:
    """Raise where not even the smallest widths keep a budget."""
    size, cost = _least(plan)
    smallest = "which is what the smallest candidates of all units take"
    remedy = "allow more, name smaller candidates, or leave fewer layers to rules and patterns"
    if bounds[0] is not None and size > bounds[0]:
        raise ArgumentError("size budget", f"at least {size:,} bytes, {smallest}", f"{bounds[0]:,}", remedy)
    if bounds[1] is not None and cost > bounds[1]:
        share = math.ceil(cost / full * 10_000) / 10_000
        expected = f"at least {share:g} of the bit operations with 8 bits everywhere, {smallest}"
        raise ArgumentError("cost budget", expected, f"{bounds[1] / full:.4g}", remedy)


def _least(plan: WidthPlan) -> tuple[int, ...]:
    """The smallest size and cost."""
    return least_uses(
        [[Option(0.0, uses) for uses in zip(group.sizes, group.costs, strict=True)] for group in plan.groups]
    )


def _record(
    chain: Chain,
    plan: WidthPlan,
    budget: Budget,
    values: Sequence[Sequence[float]],
    found: Allocation,
    full: int,
    images: int,
) -> BudgetRecord:
    choices = list(zip(plan.groups, found.chosen, values, strict=True))
    units = tuple(
        UnitWidths(
            name=group.name,
            layers=group.layers,
            widths=str(plan.pairs[group.pairs[place]]) if len(group.pairs) > 1 else None,
            bytes=group.sizes[place],
            sensitivities={str(plan.pairs[n]): value for n, value in zip(group.pairs, own, strict=True)},
        )
        for group, place, own in choices
    )
    size, cost = _least(plan)
    return BudgetRecord(
        size_budget=budget.bytes,
        cost_budget=budget.cost,
        size=sum(group.sizes[place] for group, place, _ in choices),
        cost=sum(group.costs[place] for group, place, _ in choices) / full,
        smallest_size=size,
        smallest_cost=cost / full,
        mean_weight_bits=_mean_weight_bits(chain, plan, [group.pairs[place] for group, place, _ in choices]),
        per=budget.per,
        measure=budget.measure,
        images=images,
        sensitivity=found.sensitivity,
        is_optimal=found.is_optimal,
        gap=found.gap,
        units=units,
    )


def _mean_weight_bits(chain: Chain, plan: WidthPlan, chosen: Sequence[int]) -> float:
    """Over all weights of layers; those in float have 32."""
    counts = {layer: value_of(node.args[1]).numel() for layer, node in weighted_nodes(chain.module)}  # type: ignore[arg-type]
    bits = {row.layer: FLOAT_BITS if row.weight is None else row.weight.bits for row in plan.policy(chosen)}
    return float(sum(count * bits[layer] for layer, count in counts.items()) / max(1, sum(counts.values())))
