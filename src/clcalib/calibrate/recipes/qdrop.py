"""QDrop (Wei et al., "QDrop: Randomly Dropping Quantization for Extremely Low-bit PTQ", ICLR 2022).

Block by block, rounding and activation scales jointly.  The block's input is an element-wise mix of the quantized and
the float prefix, and inside the block each activation keeps its quantized value with probability one half.

When to use: at 4 bits and fewer with time for the steps of the paper; most of the other methods build on it.
"""

from __future__ import annotations

from clcalib.calibrate.recipe import Phase, Recipe, Term
from clcalib.calibrate.schedules import short_run_rate
from clcalib.objectives.lp import Reconstruction
from clcalib.objectives.rounding_penalty import RoundingPenalty

PAPER_STEPS = 20_000


def qdrop(
    *,
    steps: int = PAPER_STEPS,
    rounding_rate: float | None = None,
    activation_rate: float | None = None,
    rounding_weight: float = 0.01,
    keep_quantized_probability: float = 0.5,
    batch_size: int = 32,
) -> Recipe:
    """Return QDrop.

    Args:
        steps: optimiser steps for each block.
        rounding_rate: Adam's rate; by default 1e-3, more in shorter runs (``short_run_rate``).
        activation_rate: Adam's rate for the scales, cosine to zero; by default 4e-5, more in shorter runs.
        rounding_weight: weight of the rounding penalty.
        keep_quantized_probability: for the elements of the block's input and of the activations inside it.
        batch_size: images a step.
    """
    if rounding_rate is None:
        rounding_rate = short_run_rate(1e-3, steps, PAPER_STEPS, 1e-2)
    if activation_rate is None:
        activation_rate = short_run_rate(4e-5, steps, PAPER_STEPS, 4e-4)
    joint = Phase(
        name="rounding and activation scales",
        steps=steps,
        batch_size=batch_size,
        rounding_rate=rounding_rate,
        activation_rate=activation_rate,
        quantized_input_probability=keep_quantized_probability,
        keep_quantized_probability=keep_quantized_probability,
        terms=(Term(Reconstruction()), Term(RoundingPenalty(), rounding_weight)),
    )
    return Recipe("qdrop", phases=(joint,))
