"""BRECQ (Li et al., "BRECQ: Pushing the Limit of Post-Training Quantization by Block Reconstruction", ICLR 2021).

Block by block: first the rounding, with float activations and input from the quantized prefix; then the activation
scales, with the rounding fixed, on float input and with exponent 2.4.

When to use: to compare with BRECQ; weights come first and activation scales afterwards, each with its own loss.
"""

from __future__ import annotations

from clcalib.calibrate.recipe import Phase, Recipe, Term
from clcalib.calibrate.schedules import short_run_rate
from clcalib.objectives.batch import Objective
from clcalib.objectives.fisher import FisherReconstruction
from clcalib.objectives.lp import Reconstruction
from clcalib.objectives.rounding_penalty import RoundingPenalty

PAPER_STEPS = 20_000


def brecq(
    *,
    steps: int = PAPER_STEPS,
    activation_steps: int | None = None,
    rounding_rate: float | None = None,
    activation_rate: float = 4e-4,
    rounding_weight: float = 0.01,
    is_fisher_weighted: bool = False,
    batch_size: int = 32,
) -> Recipe:
    """Return BRECQ.

    Args:
        steps: optimiser steps for each block's rounding.
        activation_steps: steps for its activation scales; a quarter of ``steps`` by default, as in the paper.
        rounding_rate: Adam's rate; by default 1e-3, more in shorter runs (``short_run_rate``).
        activation_rate: Adam's rate for the scales, cosine to zero.
        rounding_weight: weight of the rounding penalty.
        is_fisher_weighted: weight the error by the diagonal Fisher information.
        batch_size: images a step.
    """
    rate = short_run_rate(1e-3, steps, PAPER_STEPS, 1e-2) if rounding_rate is None else rounding_rate
    error: Objective = FisherReconstruction() if is_fisher_weighted else Reconstruction()
    rounding = Phase(
        name="rounding",
        steps=steps,
        batch_size=batch_size,
        rounding_rate=rate,
        activations="float",
        terms=(Term(error), Term(RoundingPenalty(), rounding_weight)),
    )
    activations = Phase(
        name="activation scales",
        steps=max(1, steps // 4) if activation_steps is None else activation_steps,
        batch_size=batch_size,
        activation_rate=activation_rate,
        quantized_input_probability=0.0,
        terms=(Term(Reconstruction(exponent=2.4)),),
    )
    return Recipe("brecq", phases=(rounding, activations), skips_first_unit=True)
