"""How much each unit alone changes what the network says."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection

import torch
from torch import Tensor
from torch.nn import functional as F

from clcalib.capture.chain import Chain
from clcalib.capture.running import State, advance
from clcalib.quant.late import with_late_quantizers


@dataclasses.dataclass(frozen=True)
class Sensitivity:
    """What one quantized unit does to the network's output.

    Attributes:
        divergence: KL(float outputs, outputs), mean over images, in nats.
        changed: share of the images for which the network names another class.
    """

    divergence: float
    changed: float


@torch.no_grad()
def sensitivities(
    floating: Chain,
    quantized: Chain,
    images: Tensor,
    *,
    units: Collection[int] | None = None,
    told: Callable[[int, str], None] = lambda index, name: None,
) -> dict[str, Sensitivity]:
    """Quantize one unit at a time and compare the outputs (N, classes).

    A unit is quantized in its weights and in all tensors that its layers read, those that the unit before it makes
    too; it reads the float prefix and is followed by the float rest.  A quantizer counts where its codes are computed
    with, behind all that only moves them (``quant/late.py``).  The prefix is computed once for all units, so the
    whole costs about half as many passes through the network as there are units.

    Args:
        floating: the float chain.
        quantized: the same chain with quantizers in it, their ranges found.
        images: what is shown  # shape: (N, ...)
        units: numbers of the units that are looked at; None is all.
        told: told of each unit, its number and name, before it is looked at.

    Returns:
        By the unit's name.
    """
    state: State = (images,)
    late = with_late_quantizers(quantized)
    whole = floating.subgraph((floating.input_name,), (floating.output_name,))
    truth = advance(whole, state)[0].log_softmax(1)
    found = {}
    for index, unit in enumerate(floating.units):
        if units is None or index in units:
            told(index, unit.name)
            # From float to float tensors: what the unit reads is quantized in between, what it makes is not.
            changed = advance(late.subgraph(unit.inputs, unit.outputs), state)
            outputs = advance(floating.suffix(index), changed)[0].log_softmax(1)
            found[unit.name] = Sensitivity(
                divergence=max(0.0, float(F.kl_div(outputs, truth, reduction="batchmean", log_target=True))),
                changed=float((outputs.argmax(1) != truth.argmax(1)).double().mean()),
            )
        state = advance(floating.body(index), state)
    return found


def unit_sensitivities(floating: Chain, quantized: Chain, images: Tensor) -> dict[str, float]:
    """The divergences of ``sensitivities``, by the unit's name."""
    return {name: found.divergence for name, found in sensitivities(floating, quantized, images).items()}
