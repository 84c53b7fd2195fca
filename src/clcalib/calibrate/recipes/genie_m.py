"""GENIE-M (Jeon, Lee, Kim, "Genie: Show Me the Data for Quantization", CVPR 2023): QDrop with trained weight scales.

w_hat = s * (clamp(B + h(v) + z, q_min, q_max) - z): B = floor(w / s_0) comes from the scale that the search found and
stays, so that the scale s can be trained beside the rounding v: it moves the values, never the codes.

When to use: as QDrop, where the scales of the weights are to be trained as well.
"""

from __future__ import annotations

import dataclasses

from clcalib.calibrate.recipe import Recipe
from clcalib.calibrate.recipes.qdrop import PAPER_STEPS, qdrop
from clcalib.calibrate.schedules import short_run_rate


def genie_m(
    *,
    steps: int = PAPER_STEPS,
    rounding_rate: float | None = None,
    weight_scale_rate: float | None = None,
    activation_rate: float | None = None,
    rounding_weight: float = 0.01,
    keep_quantized_probability: float = 0.5,
    batch_size: int = 32,
) -> Recipe:
    """Return GENIE-M.

    Args:
        steps: optimiser steps for each block.
        rounding_rate: Adam's rate; by default 1e-3, more in shorter runs (``short_run_rate``).
        weight_scale_rate: Adam's rate for the weights' scales, as a share of their first value, cosine to zero; by
            default 1e-3, more in shorter runs.
        activation_rate: Adam's rate for the scales, cosine to zero; by default 4e-5, more in shorter runs.
        rounding_weight: weight of the rounding penalty.
        keep_quantized_probability: for the elements of the block's input and of the activations inside it.
        batch_size: images a step.

    *Deviation*: the paper trains the scale itself, at 1e-4; here it is the factor on its first value, at 1e-3, which is
    the same for a scale of 0.1 and does not tear at the small scales of 8-bit layers.  Symmetric activations and the
    8-bit layers are settings of the quantizers, not of a recipe (docs/deviations.md).
    """
    if weight_scale_rate is None:
        weight_scale_rate = short_run_rate(1e-3, steps, PAPER_STEPS, 1e-2)
    (joint,) = qdrop(
        steps=steps,
        rounding_rate=rounding_rate,
        activation_rate=activation_rate,
        rounding_weight=rounding_weight,
        keep_quantized_probability=keep_quantized_probability,
        batch_size=batch_size,
    ).phases
    joint = dataclasses.replace(
        joint,
        name="rounding and all scales",
        weight_scale_rate=weight_scale_rate,
        has_scale_gradient_factor=False,
    )
    return Recipe("genie_m", phases=(joint,), skips_first_unit=True)
