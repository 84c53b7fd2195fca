"""GLF-Q: the penultimate feature behind the frozen float remainder, beside the unit's own output.

Block by block, rounding and all scales jointly, rounded at each step.  L = e / e_0 + f / f_0, with e the error of the
block's output, f that of the feature which the rest of the float network makes of it, e_0 and f_0 what they are as
the block is found.

When to use: where the penultimate feature is to count as much as the output of the block.
"""

from __future__ import annotations

import dataclasses
from typing import Literal

from clcalib.calibrate.recipe import Recipe, Term
from clcalib.calibrate.recipes.straight_through import straight_through
from clcalib.objectives.features import FeatureReconstruction

PAPER_STEPS = 3_000


def glf_q(
    *,
    steps: int = PAPER_STEPS,
    feature_weight: float = 1.0,
    read: Literal["features", "logits"] = "features",
    rounding_rate: float = 0.02,
    weight_scale_rate: float = 2e-2,
    activation_rate: float = 2e-3,
    keep_quantized_probability: float = 1.0,
    batch_size: int = 32,
) -> Recipe:
    """Return GLF-Q.

    Args:
        steps: optimiser steps for each block.
        feature_weight: of the feature's error; at weight 1 it begins as large as that of the block's output.
        read: where the feature is read: ``"features"`` (penultimate), or ``"logits"`` without a classifier.
        rounding_rate: Adam's highest rate for the offsets, in steps of the grid (``straight_through``).
        weight_scale_rate: Adam's rate for the weights' scales, as a share of their first value, cosine to zero.
        activation_rate: Adam's rate for the activation scales, cosine to zero.
        keep_quantized_probability: for the elements of the block's input and of the activations inside it.
        batch_size: images a step.

    *Deviations*: known to us from docs/method.md, section 5, only; its rates are not, so they are those of
    ``straight_through``.  e / e_0 + f / f_0 is multiplied by e_0 (``Term.is_relative``), which Adam does not see.
    """
    base = straight_through(
        steps=steps,
        rounding_rate=rounding_rate,
        weight_scale_rate=weight_scale_rate,
        activation_rate=activation_rate,
        keep_quantized_probability=keep_quantized_probability,
        batch_size=batch_size,
    )
    feature = Term(FeatureReconstruction(read), feature_weight, is_relative=True)
    phases = tuple(dataclasses.replace(phase, terms=(*phase.terms, feature)) for phase in base.phases)
    return dataclasses.replace(base, name="glf_q", phases=phases)
