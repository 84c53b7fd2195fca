"""Tuning of a finished network: scales and biases, all layers together, by the error of the network's output.

Units are optimised one after the other, each for its own output.  What is left to gain lies in how they work together,
and few images are soon learned by heart; so the codes stay as the units found them, and what is trained is a few
numbers for each channel and tensor.  As a precaution no step sees an image that another one has seen.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from clcalib.calibrate.recipe import Phase, Recipe, Term
from clcalib.calibrate.recipes.cl_calib import extended, recorded
from clcalib.errors import ArgumentError
from clcalib.objectives.network import NetworkReconstruction

SUFFIX = "+tuning"
AUGMENTATION = ("flip", "crop", "mixup")


def with_tuning(
    recipe: Recipe,
    *,
    steps: int = 200,
    weight_scale_rate: float = 5e-3,
    activation_rate: float = 5e-3,
    bias_rate: float = 5e-3,
    augmentation: Sequence[str] = AUGMENTATION,
    batch_size: int = 32,
) -> Recipe:
    """Return the recipe with its scales and biases tuned together when all units are done.

    L = e / e^0, with e the reconstruction error (``lp_error``) at the network's end, on images of the calibration set
    after the augmentation, and e^0 its value at the start on these images as they are.  Codes of weights stay.

    Args:
        recipe: any recipe, also one that optimises nothing itself.
        steps: optimiser steps, each through the whole network and back.
        weight_scale_rate: Adam's rate for the scales of weights, as a share of their first value, cosine to zero.
        activation_rate: the same for the scales of activations.
        bias_rate: the same for biases of quantized layers, as a share of the norm of the output channel's weight.
        augmentation: what each step does anew to its images (``data.augmentation``), mixing half of them; none where
            the network's input is no batch of images (N, C, H, W).
        batch_size: images a step.

    Raises:
        ArgumentError: the recipe has a phase over the whole network already, a number is out of range, or a name of
            ``augmentation`` is unknown.

    Source: ours; the loss is distillation from the float network's logits (Ba and Caruana, "Do Deep Nets Really Need to
    be Deep?", NeurIPS 2014), on changes of its own few images.
    """
    if recipe.last_phase is not None:
        hint = "leave out one of tuning and last_phase"
        raise ArgumentError("recipe", "one without a phase over the whole network", recipe.name, hint)
    phase = Phase(
        name="tuning",
        steps=steps,
        batch_size=batch_size,
        rounding="fixed",
        weight_scale_rate=weight_scale_rate,
        activation_rate=activation_rate,
        has_relative_activation_rate=True,
        bias_rate=bias_rate,
        has_scale_gradient_factor=False,
        augmentation=tuple(augmentation),
        terms=(Term(NetworkReconstruction(unit_weight=0.0)),),
    )
    settings = recipe.contrastive
    if settings is not None:
        phase = extended(phase, settings)
        settings = recorded(settings, (*recipe.phases, phase))
    return dataclasses.replace(recipe, name=f"{recipe.name}{SUFFIX}", last_phase=phase, contrastive=settings)
