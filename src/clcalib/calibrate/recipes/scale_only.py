"""Activation steps alone: weights stay at nearest rounding, and only the activation scales are learned (LSQ gradient).

It is the second phase of BRECQ without the first one, and so tells how much of a method comes from its scales.

When to use: to see how much of a gain comes from the activation scales alone.
"""

from __future__ import annotations

from clcalib.calibrate.recipe import Phase, Recipe, Term
from clcalib.calibrate.schedules import short_run_rate
from clcalib.objectives.lp import Reconstruction

PAPER_STEPS = 5_000


def scale_only(
    *,
    steps: int = PAPER_STEPS,
    activation_rate: float | None = None,
    exponent: float = 2.4,
    quantized_input_probability: float = 0.0,
    keep_quantized_probability: float = 1.0,
    batch_size: int = 32,
) -> Recipe:
    """Return the recipe that trains activation scales only.

    Args:
        steps: optimiser steps for each block.
        activation_rate: Adam's rate, cosine to zero; by default 4e-4, more in shorter runs (``short_run_rate``).
        exponent: of the reconstruction error, above 0.
        quantized_input_probability: for the elements of the block's input; 0 is float input, QDrop has 0.5.
        keep_quantized_probability: for the elements of the activations inside the block; QDrop has 0.5.
        batch_size: images a step.

    Source: LSQ (Esser et al. 2020), the gradient; BRECQ (Li et al. 2021), everything else.
    *Deviation*: the weights are not rounded by reconstruction first.
    """
    rate = short_run_rate(4e-4, steps, PAPER_STEPS, 4e-3) if activation_rate is None else activation_rate
    scales = Phase(
        name="activation scales",
        steps=steps,
        batch_size=batch_size,
        activation_rate=rate,
        quantized_input_probability=quantized_input_probability,
        keep_quantized_probability=keep_quantized_probability,
        terms=(Term(Reconstruction(exponent)),),
    )
    return Recipe("scale_only", phases=(scales,))
