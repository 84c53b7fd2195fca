"""Which widths are to be chosen in a network: the candidates of each group of units, and what they cost.

The table of widths is built once for every pair of candidate widths, all layers alike.  Where the rows of a unit are
the same at two pairs, they are one candidate; a unit whose rows never differ has nothing to choose.
"""

from __future__ import annotations

import dataclasses
import glob
from collections.abc import Mapping, Sequence
from typing import Literal

from clcalib.capture.chain import Chain
from clcalib.capture.describe import describe
from clcalib.quant.allocation import Link
from clcalib.quant.cost import bit_operations, layer_bytes
from clcalib.quant.insert import chain_policy
from clcalib.quant.placement import Placement
from clcalib.quant.policy import Bits, EdgeBits, LayerPolicy, Override, Overrides, build_policy
from clcalib.quant.reads import find_reads
from clcalib.quant.spec import Grid
from clcalib.quant.targets import Target

Width = int | Literal["default"] | None
REASON = "chosen within the budget"
_PROBES = (Bits(2, 2), Bits(3, 3))  # what differs between them is settled by no rule and no pattern


@dataclasses.dataclass(frozen=True)
class Group:
    """Units that get one pair of widths: one, or several that share a weight.

    Attributes:
        name: the units' names.
        units: their numbers in the chain.
        layers: the names of their layers and products.
        pairs: numbers of the pairs of widths that differ for it.
        sizes, costs: bytes of weights and bit operations at each of these pairs.
    """

    name: str
    units: tuple[int, ...]
    layers: tuple[str, ...]
    pairs: tuple[int, ...]
    sizes: tuple[int, ...]
    costs: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class WidthPlan:
    """What there is to choose.

    Attributes:
        pairs: the pairs of candidate widths.
        policies: the table of widths with each of them everywhere.
        groups: in the order of the units.
        links: pairs of groups whose layers read the same tensor, which has one width: the tensor's at each pair.
        placement: of the target that it was made for.
        free_weights, free_inputs: the layers whose width no rule and no pattern settles.
    """

    pairs: tuple[Bits, ...]
    policies: tuple[tuple[LayerPolicy, ...], ...]
    groups: tuple[Group, ...]
    links: tuple[Link, ...]
    placement: Placement | None
    free_weights: frozenset[str]
    free_inputs: frozenset[str]

    def overrides(
        self, chosen: Sequence[int], *, with_weights: bool = True, with_inputs: bool = True
    ) -> dict[str, Override]:
        """The overrides that give each group the pair of this number; what is settled they leave alone."""
        found = {}
        for group, number in zip(self.groups, chosen, strict=True):
            pair = self.pairs[number]
            for layer in group.layers:
                weights: Width = pair.weights if with_weights and layer in self.free_weights else "default"
                inputs: Width = pair.activations if with_inputs and layer in self.free_inputs else "default"
                if (weights, inputs) != ("default", "default"):
                    found[glob.escape(layer)] = Override(weights, inputs, reason=REASON)
        return found

    def policy(self, chosen: Sequence[int]) -> tuple[LayerPolicy, ...]:
        """The table of widths of such a choice, in the order of the others."""
        rows: dict[str, LayerPolicy] = {}
        for group, number in zip(self.groups, chosen, strict=True):
            rows |= {row.layer: row for row in self.policies[number] if row.layer in group.layers}
        return tuple(rows[row.layer] for row in self.policies[0] if row.layer in rows)


def laid_under(chosen: Mapping[str, Override], overrides: Overrides | None) -> Overrides:
    """The user's overrides behind the chosen ones, so that they win; a width that they leave open stays as chosen."""
    found: dict[str, Bits | Override | str] = {**chosen}
    for pattern, widths in (overrides or {}).items():
        own, found[pattern] = found.pop(pattern, None), widths
        given = Override.parse(f"overrides[{pattern!r}]", widths) if isinstance(widths, str) else widths
        if isinstance(given, Override) and isinstance(own, Override):  # of one layer by its name
            weights = own.weights if given.weights == "default" else given.weights
            inputs = own.activations if given.activations == "default" else given.activations
            found[pattern] = Override(weights, inputs, reason=given.reason)
    return found


def plan_widths(
    chain: Chain,
    pairs: Sequence[Bits],
    setting: str,
    overrides: Overrides | None,
    first_last_bits: EdgeBits,
    *,
    grids: Mapping[str, Grid] | None = None,
    target: Target | None = None,
) -> WidthPlan:
    """Find out what there is to choose.

    Args:
        chain: the float chain, in the units that are to have one pair of widths each.
        pairs: the candidates, in rising order.
        setting: as for ``chain_policy``; what it settles stays, as with the next two.
        overrides: the same.
        first_last_bits: the same.
        grids: the same.
        target: the same; tensors that its kernels need quantized beside those that layers read have their widths from
            it, and are no choice.

    Raises:
        ArgumentError: as ``chain_policy`` raises it.
    """
    policies = tuple(chain_policy(chain, pair, setting, overrides, first_last_bits, grids, target) for pair in pairs)
    probes = [
        build_policy(
            chain.layers,
            bits,
            setting,
            overrides,
            first_last_bits=first_last_bits,
            kinds={row.layer: row.kind for row in policies[0]},
            products=chain.products,
        )
        for bits in _PROBES
    ]
    both = list(zip(*probes, strict=True))
    groups, placement = _groups(chain, policies), None if target is None else target.placement
    return WidthPlan(
        pairs=tuple(pairs),
        policies=policies,
        groups=groups,
        links=_links(chain, policies, groups, placement),
        placement=placement,
        free_weights=frozenset(first.layer for first, second in both if first.weight != second.weight),
        free_inputs=frozenset(first.layer for first, second in both if first.input != second.input),
    )


def _groups(chain: Chain, policies: Sequence[Sequence[LayerPolicy]]) -> tuple[Group, ...]:
    tables = [{row.layer: (row.weight, row.input, row.right) for row in policy} for policy in policies]
    sizes = [layer_bytes(chain, policy) for policy in policies]
    costs = [bit_operations(chain, policy) for policy in policies]
    rows = describe(chain)
    found = []
    for members in _sharing([set(row.layers) for row in rows]):
        names = dict.fromkeys(name for index in members for name in (*rows[index].layers, *rows[index].products))
        layers = tuple(name for name in names if name in tables[0])
        first: dict[object, int] = {}
        for number, table in enumerate(tables):
            first.setdefault(tuple(table[layer] for layer in layers), number)
        own = tuple(first.values())
        found.append(
            Group(
                name=", ".join(rows[index].name for index in members),
                units=members,
                layers=layers,
                pairs=own,
                sizes=tuple(sum(sizes[number].get(layer, 0) for layer in layers) for number in own),
                costs=tuple(sum(costs[number][layer] for layer in layers) for number in own),
            )
        )
    return tuple(found)


def _sharing(sets: Sequence[set[str]]) -> list[tuple[int, ...]]:
    """The numbers of the sets, those together that have elements in common, directly or by others."""
    groups: list[tuple[set[str], tuple[int, ...]]] = []
    for index, own in enumerate(sets):
        touching = [group for group in groups if group[0] & own]
        groups = [group for group in groups if not group[0] & own]
        elements = own.union(*(group[0] for group in touching))
        groups.append((elements, (*(number for group in touching for number in group[1]), index)))
    return sorted(members for _, members in groups)


def _links(
    chain: Chain, policies: Sequence[Sequence[LayerPolicy]], groups: Sequence[Group], placement: Placement | None
) -> tuple[Link, ...]:
    """Neighbours among the groups that read one tensor, where its width is to be chosen.

    With a target one quantizer also serves those that read what only moved: a layer, and another one behind a pool.
    """
    home = {layer: number for number, group in enumerate(groups) for layer in group.layers}
    tables = [{row.layer: row for row in policy} for policy in policies]
    readers: dict[str, set[int]] = {}
    widths: dict[str, list[int]] = {}
    for read in find_reads(chain.module, placement):
        specs = [read.spec(table.get(read.name)) for table in tables]
        if read.name in home and len(set(specs)) > 1:
            readers.setdefault(read.tensor.name, set()).add(home[read.name])
            widths[read.tensor.name] = [0 if spec is None else spec.bits for spec in specs]
    found: dict[Link, None] = {}
    for tensor, own in readers.items():
        for pair in zip(sorted(own), sorted(own)[1:], strict=False):
            first, second = (tuple(widths[tensor][number] for number in groups[group].pairs) for group in pair)
            found[Link(pair, (first, second))] = None
    return tuple(found)
