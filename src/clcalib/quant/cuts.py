"""A target's quantizers as the pieces of a chain hold them, each with the piece that reads what it makes.

A target quantizes where a kernel stores its result, in front of all that only moves codes: a pool by maximum, a
shuffle of channels.  Where a chain is cut behind such a move, the quantizer of what a unit reads stands in another
unit.  Behind the move it makes the same values: rounding each value by itself and moving values may change places.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from clcalib.capture.chain import Chain
from clcalib.quant.placement import Placement, named_tensors
from clcalib.quant.policy import TENSOR, LayerPolicy
from clcalib.quant.reads import find_reads
from clcalib.quant.targets import Target


def at_cuts(
    chain: Chain, policy: Sequence[LayerPolicy], target: Target | None
) -> tuple[tuple[LayerPolicy, ...], Placement | None]:
    """The rows and the placement of the same quantized network, with the quantizers behind moves that end at a cut.

    Args:
        chain: the float chain, which says where the cuts are.
        policy: its rows for the target.
        target: that the rows were made for.

    Returns:
        What ``insert_quantizers`` takes.  Where kernels read a tensor on both sides of a move, it has two quantizers of
        the same width, each with a range of its own.
    """
    placement = None if target is None else target.placement
    if target is None or placement is None:
        return tuple(policy), placement
    cuts = frozenset(name for unit in chain.units for name in unit.outputs)
    own = dataclasses.replace(placement, cuts=cuts)
    layers = [row for row in policy if row.kind != TENSOR]
    rows = {row.layer: row for row in policy}
    specs = {
        read.tensor: spec for read in find_reads(chain.module, placement) if (spec := read.spec(rows.get(read.name)))
    }
    sources, nodes = placement.sources(chain.module), dict(named_tensors(chain.module))
    tensors = [
        dataclasses.replace(row, input=specs.get(sources[nodes[row.layer]], row.input))
        for row in dataclasses.replace(target, placement=own).rows(chain, layers)
    ]
    return (*layers, *tensors), own
