"""PD-Quant (Liu et al., "PD-Quant: Post-Training Quantization Based on Prediction Difference Metric", CVPR 2023).

QDrop's block reconstruction, with the prediction difference beside it: half of each batch also goes through the block
with everything quantized and then through the float rest of the network, whose prediction is held against the float
network's.  The block's float input is first corrected towards the statistics of batch norm.

When to use: for classifiers at very few bits, with time: what the network predicts counts beside what the block
returns.
"""

from __future__ import annotations

from clcalib.calibrate.recipe import Correction, Phase, Recipe, Term
from clcalib.calibrate.schedules import short_run_rate
from clcalib.errors import ArgumentError
from clcalib.objectives.lp import Reconstruction
from clcalib.objectives.prediction import Prediction
from clcalib.objectives.rounding_penalty import RoundingPenalty

PAPER_STEPS = 20_000
PAPER_CORRECTION_STEPS, LEAST_CORRECTION_STEPS = 500, 20


def pd_quant(
    *,
    steps: int = PAPER_STEPS,
    rounding_rate: float | None = None,
    activation_rate: float | None = None,
    rounding_weight: float = 0.01,
    prediction_weight: float = 10.0,
    temperature: float = 4.0,
    correction_steps: int | None = None,
    correction_strength: float = 0.02,
    keep_quantized_probability: float = 0.5,
    batch_size: int = 32,
) -> Recipe:
    """Return PD-Quant.

    Args:
        steps: optimiser steps for each block.
        rounding_rate: Adam's rate; by default 3e-3, more in shorter runs (``short_run_rate``).
        activation_rate: Adam's rate for the scales, cosine to zero; by default 4e-5, more in shorter runs.
        rounding_weight: weight of the rounding penalty: 0.01 ResNet and RegNet, 0.1 MobileNetV2, 0.2 MNASNet.
        prediction_weight: weight of the prediction difference, 1 / 0.1 in the paper.
        temperature: of the predictions: 4 ResNet and RegNet, 1 MobileNetV2 and MNASNet.
        correction_steps: steps of the correction for each batch of each block, 0 for none; by default 500, in shorter
            runs fewer, as many as keep its share of the run, but at least 20.
        correction_strength: how far it may move the input (``Correction.strength``): 0.02 ResNet, 0.01 RegNet, 0.005
            MobileNetV2, 0.001 MNASNet.
        keep_quantized_probability: for the elements of the block's input and of the activations inside it.
        batch_size: images a step; half of them go through the quantized pass.

    *Deviation*: rates and correction in short runs; the papers only ever use 20,000 steps.
    """
    if rounding_rate is None:
        rounding_rate = short_run_rate(3e-3, steps, PAPER_STEPS, 1e-2)
    if activation_rate is None:
        activation_rate = short_run_rate(4e-5, steps, PAPER_STEPS, 4e-4)
    if correction_steps is None:
        in_proportion = round(PAPER_CORRECTION_STEPS * steps / PAPER_STEPS)
        correction_steps = min(PAPER_CORRECTION_STEPS, max(LEAST_CORRECTION_STEPS, in_proportion))
    half = max(2, batch_size // 2)
    prediction = Term(Prediction(temperature), prediction_weight, images=half, on="quantized")
    joint = Phase(
        name="rounding and activation scales",
        steps=steps,
        batch_size=batch_size,
        rounding_rate=rounding_rate,
        activation_rate=activation_rate,
        quantized_input_probability=keep_quantized_probability,
        keep_quantized_probability=keep_quantized_probability,
        has_scale_gradient_factor=False,
        terms=(Term(Reconstruction()), Term(RoundingPenalty(), rounding_weight), prediction),
    )
    return Recipe("pd_quant", phases=(joint,), correction=_correction(correction_steps, correction_strength))


def _correction(steps: int, strength: float) -> Correction | None:
    """The errors of ``Correction`` would name its own arguments."""
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < 0:
        raise ArgumentError("correction_steps", "a whole number of at least 0", repr(steps), "0 leaves it out")
    if not 0 < strength < float("inf"):
        hint = "to leave the correction out, give correction_steps=0"
        raise ArgumentError("correction_strength", "a positive number", strength, hint)
    return Correction(steps=steps, strength=strength) if steps else None
