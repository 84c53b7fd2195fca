"""Straight-through rounding: codes are rounded at each step, and offsets and all scales are learned through it.

w_hat = s * (clamp(round(w / s + d) + z, q_min, q_max) - z): the offset d starts at 0 and gets the gradient as if
nothing were rounded (Bengio et al. 2013), the scale s that of LSQ (Esser et al. 2020).  What is optimised is what
comes out, so there is no penalty that hardens.

The rates come from benchmarks/fewer_steps.py (ResNet-20, W2A2, one seed), where they were selected by the accuracy on
images outside the calibration and the test set.

When to use: in short runs, as the other way of rounding beside that of ``fast``.
"""

from __future__ import annotations

from clcalib.calibrate.recipe import Phase, Recipe, Term
from clcalib.objectives.lp import Reconstruction

STEPS = 200


def straight_through(
    *,
    steps: int = STEPS,
    rounding_rate: float = 0.02,
    weight_scale_rate: float = 2e-2,
    activation_rate: float = 2e-3,
    keep_quantized_probability: float = 0.5,
    batch_size: int = 32,
) -> Recipe:
    """Return reconstruction with straight-through rounding.

    Args:
        steps: optimiser steps for each block.
        rounding_rate: Adam's highest rate for the offsets, in steps of the grid; it rises for a short while, then falls
            by a cosine.
        weight_scale_rate: Adam's rate for the weights' scales, as a share of their first value, cosine to zero.
        activation_rate: Adam's rate for the activation scales, cosine to zero.
        keep_quantized_probability: for the elements of the block's input and of the activations inside it.
        batch_size: images a step.

    *Deviation*: LSQ trains w itself; here it is an offset in steps, so that one rate fits all layers.
    """
    joint = Phase(
        name="offsets and all scales",
        steps=steps,
        batch_size=batch_size,
        rounding="straight_through",
        rounding_rate=rounding_rate,
        rounding_schedule="warm_up_cosine",
        weight_scale_rate=weight_scale_rate,
        activation_rate=activation_rate,
        quantized_input_probability=keep_quantized_probability,
        keep_quantized_probability=keep_quantized_probability,
        terms=(Term(Reconstruction()),),
    )
    return Recipe("straight_through", phases=(joint,))
