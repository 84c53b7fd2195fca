"""GPTQ (Frantar et al. 2022, arXiv:2210.17323): rounding with error feedback, in closed form, without a single step.

When to use: where there is no time for steps, and something better than nearest rounding is wanted.
"""

from __future__ import annotations

from clcalib.calibrate.recipe import Recipe


def gptq() -> Recipe:
    """Return the recipe that rounds each layer with error feedback on what the quantized prefix sends into it."""
    return Recipe("gptq", start="error_feedback")
