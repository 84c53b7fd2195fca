"""The host methods, one paper a file, and the table of their names."""

from __future__ import annotations

from collections.abc import Callable

from clcalib.calibrate.recipe import Recipe
from clcalib.calibrate.recipes.adaround import adaround
from clcalib.calibrate.recipes.brecq import brecq
from clcalib.calibrate.recipes.cl_calib import with_contrastive
from clcalib.calibrate.recipes.fast import fast
from clcalib.calibrate.recipes.gptq import gptq
from clcalib.calibrate.recipes.last_phase import with_last_phase
from clcalib.calibrate.recipes.nearest import nearest
from clcalib.calibrate.recipes.qdrop import qdrop

RECIPES: dict[str, Callable[..., Recipe]] = {
    "nearest": nearest,
    "gptq": gptq,
    "adaround": adaround,
    "brecq": brecq,
    "qdrop": qdrop,
    "fast": fast,
}

__all__ = ["RECIPES", "adaround", "brecq", "fast", "gptq", "nearest", "qdrop", "with_contrastive", "with_last_phase"]
