"""Trained biases for any recipe: what rounding does to the mean of each channel is taken back, at no cost in the file.

Kernels add biases as 32-bit integers, so they can be moved as finely as wanted, at every width.  Bias correction (Nagel
et al. 2019) sets them once, from the mean error of each channel; here they are optimised beside the rounding and the
activation scales, by the same loss.
"""

from __future__ import annotations

import dataclasses

from clcalib.calibrate.recipe import Recipe
from clcalib.errors import ArgumentError

SUFFIX = "+biases"


def with_biases(recipe: Recipe, *, rate: float = 0.03) -> Recipe:
    """Return the recipe with the biases of quantized layers trained beside what it trains already.

    b_k = b_k^0 + ||w_k|| o_k, with o trained; ||w_k|| is the norm of the weight of output channel k.  They are trained
    in all phases of the units, and in no last phase.  Layers without a bias stay without one; batch norm that capture
    folded has given the layer before it a bias.

    Args:
        recipe: any recipe with phases.
        rate: Adam's rate for o, cosine to zero: about the share of ||w_k|| that a bias may move in a step.

    Raises:
        ArgumentError: the recipe optimises nothing or trains biases already, or the rate is out of range.

    Source: ours; bias correction after Nagel et al. 2019, "Data-Free Quantization", section 4.2, is its closed form for
    one layer.
    """
    if not recipe.phases:
        raise ArgumentError("recipe", "one that optimises something", recipe.name, "use fast, qdrop or brecq")
    if any(phase.bias_rate is not None for phase in recipe.phases):
        raise ArgumentError("recipe", "one that trains no biases yet", recipe.name, "lay with_biases over it once")
    if not 0 < rate < float("inf"):
        raise ArgumentError("rate", "a positive number", rate, "leave the biases alone instead of a rate of 0")
    phases = tuple(dataclasses.replace(phase, bias_rate=rate) for phase in recipe.phases)
    return dataclasses.replace(recipe, name=f"{recipe.name}{SUFFIX}", phases=phases)
