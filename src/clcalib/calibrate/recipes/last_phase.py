"""A last phase for any recipe: when all units are done, the whole network is optimised together for a few steps.

Units are optimised one after the other, each for its own output, so none knows what those behind it need.  The last
phase trains all roundings and activation scales at once.  Its loss keeps the units' own errors beside that of the
network's end, since losses on the end alone overfit the few images.
"""

from __future__ import annotations

import dataclasses

from clcalib.calibrate.recipe import Phase, Recipe, Term
from clcalib.calibrate.recipes.cl_calib import extended, recorded
from clcalib.errors import ArgumentError
from clcalib.objectives.network import NetworkReconstruction
from clcalib.objectives.prediction import Prediction
from clcalib.objectives.rounding_penalty import RoundingPenalty

SUFFIX = "+last_phase"


def with_last_phase(
    recipe: Recipe,
    *,
    steps: int = 200,
    rounding_rate: float = 0.1,
    activation_rate: float = 4e-4,
    rounding_weight: float = 25.0,
    start_share: float = 0.9,
    keep_quantized_probability: float = 1.0,
    end_weight: float = 1.0,
    prediction_weight: float = 0.0,
    temperature: float = 4.0,
    batch_size: int = 32,
) -> Recipe:
    """Return the recipe with a phase over the whole network behind all units.

    L = mean_k e_k / e_k^0 + rounding_weight * (mean penalty of a rounding), k over all units and so over the network's
    end.  Where the recipe has a contrastive term, it is added here too; ``with_contrastive`` may also come afterwards,
    with the same result.

    Args:
        recipe: any recipe, also one that optimises nothing itself.
        steps: optimiser steps, each through the whole network and back.
        rounding_rate: Adam's highest rate for the rounding; it rises for a short while, then falls by a cosine.
        activation_rate: Adam's rate for the activation scales, cosine to zero.
        rounding_weight: weight of the rounding penalty; at 25 it soon outweighs the errors, as it does in the units.
        start_share: how far the rounding starts from the float weight towards the codes that the units found.
        keep_quantized_probability: that an activation element is quantized in a step.
        end_weight: of the error at the network's end; 1 is as much as each unit.
        prediction_weight: of the prediction difference (``objectives.prediction``), relative to the other terms; 0
            leaves it out.
        temperature: of these predictions: 4 ResNet and RegNet, 1 MobileNetV2 and MNASNet.
        batch_size: images a step.

    Raises:
        ArgumentError: the recipe has a last phase already, or a number is out of range.

    Source: ours; the rounding and its penalty after AdaRound, the whole network at the end as in no host method.
    """
    if recipe.last_phase is not None:
        raise ArgumentError("recipe", "one without a last phase", recipe.name)
    if not 0 <= prediction_weight < float("inf"):
        raise ArgumentError("prediction_weight", "a number of at least 0", prediction_weight)
    difference = Term(Prediction(temperature), prediction_weight, is_relative=True)
    prediction = [difference] if prediction_weight > 0 else []
    phase = Phase(
        name="whole network",
        steps=steps,
        batch_size=batch_size,
        rounding_rate=rounding_rate,
        rounding_schedule="warm_up_cosine",
        start_share=start_share,
        activation_rate=activation_rate,
        keep_quantized_probability=keep_quantized_probability,
        terms=(
            Term(NetworkReconstruction(end_weight)),
            Term(RoundingPenalty(is_mean=True), rounding_weight),
            *prediction,
        ),
    )
    settings = recipe.contrastive
    if settings is not None:
        phase = extended(phase, settings)
        settings = recorded(settings, (*recipe.phases, phase))
    return dataclasses.replace(recipe, name=f"{recipe.name}{SUFFIX}", last_phase=phase, contrastive=settings)
