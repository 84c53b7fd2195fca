"""QDrop in a few hundred steps: a start in closed form, a large rate that falls, and a stronger penalty.

The papers' 20,000 steps go to a small rate: Adam moves a rounding variable by about its rate a step, and it has to come
some 2.4 far to be decided.  Three things make that way short: the rounding starts near the codes of error feedback
(``quant/error_feedback.py``, after GPTQ), its rate is 320 times the paper's and falls by a cosine, so that it
decides early and settles late, and the activation scales follow at 50 times the paper's rate.

The numbers come from benchmarks/fewer_steps.py (ResNet-20, W2A2), where they were selected by the accuracy on images
outside the calibration and the test set.

When to use: first, and whenever minutes count: it is the default.
"""

from __future__ import annotations

from clcalib.calibrate.recipe import Phase, Recipe, Term
from clcalib.objectives.lp import Reconstruction
from clcalib.objectives.rounding_penalty import RoundingPenalty

STEPS = 200


def fast(
    *,
    steps: int = STEPS,
    rounding_rate: float = 0.32,
    activation_rate: float = 2e-3,
    rounding_weight: float = 0.03,
    start_share: float = 0.8,
    keep_quantized_probability: float = 0.5,
    batch_size: int = 32,
) -> Recipe:
    """Return QDrop with the settings for few steps.

    Args:
        steps: optimiser steps for each block.
        rounding_rate: Adam's highest rate for the rounding; it rises for a short while, then falls by a cosine.
        activation_rate: Adam's rate for the scales, cosine to zero.
        rounding_weight: weight of the rounding penalty.
        start_share: how far the rounding starts from the float weight towards the codes of error feedback.
        keep_quantized_probability: for the elements of the block's input and of the activations inside it.
        batch_size: images a step.

    *Deviation* from QDrop: the start, the schedule and all rates.
    """
    joint = Phase(
        name="rounding and activation scales",
        steps=steps,
        batch_size=batch_size,
        rounding_rate=rounding_rate,
        rounding_schedule="warm_up_cosine",
        start_share=start_share,
        activation_rate=activation_rate,
        quantized_input_probability=keep_quantized_probability,
        keep_quantized_probability=keep_quantized_probability,
        terms=(Term(Reconstruction()), Term(RoundingPenalty(), rounding_weight)),
    )
    return Recipe("fast", phases=(joint,), start="error_feedback")
