"""AdaRound (Nagel et al., "Up or Down? Adaptive Rounding for Post-Training Quantization", ICML 2020).

Layer by layer, the rounding of the weights is learned so that the layer's output, on input from the quantized prefix,
stays near the float layer's output.  Activations inside the layer stay float meanwhile.

When to use: to compare with AdaRound, or where single layers are to be the units.
"""

from __future__ import annotations

from clcalib.calibrate.recipe import Phase, Recipe, Term
from clcalib.calibrate.schedules import short_run_rate
from clcalib.objectives.lp import Reconstruction
from clcalib.objectives.rounding_penalty import RoundingPenalty

PAPER_STEPS = 10_000


def adaround(
    *,
    steps: int = PAPER_STEPS,
    rounding_rate: float | None = None,
    rounding_weight: float = 0.01,
    batch_size: int = 32,
) -> Recipe:
    """Return AdaRound.

    Args:
        steps: optimiser steps for each layer.
        rounding_rate: Adam's rate; by default 1e-3, more in shorter runs (``short_run_rate``).
        rounding_weight: weight of the rounding penalty: 0.01 ResNet and RegNet, 0.1 MobileNetV2, 0.2 MNASNet.
        batch_size: images a step.
    """
    rate = short_run_rate(1e-3, steps, PAPER_STEPS, 1e-2) if rounding_rate is None else rounding_rate
    rounding = Phase(
        name="rounding",
        steps=steps,
        batch_size=batch_size,
        rounding_rate=rate,
        activations="float",
        terms=(Term(Reconstruction()), Term(RoundingPenalty(), rounding_weight)),
    )
    return Recipe("adaround", unit="layer", phases=(rounding,))
