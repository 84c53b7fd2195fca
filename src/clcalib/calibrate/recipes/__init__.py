"""The host methods, one paper a file, and the table of their names."""

from __future__ import annotations

from collections.abc import Callable

from clcalib.calibrate.recipe import Recipe
from clcalib.calibrate.recipes.adaround import adaround
from clcalib.calibrate.recipes.biases import with_biases
from clcalib.calibrate.recipes.brecq import brecq
from clcalib.calibrate.recipes.cl_calib import cl_calib, with_contrastive
from clcalib.calibrate.recipes.fast import fast
from clcalib.calibrate.recipes.genie_m import genie_m
from clcalib.calibrate.recipes.glf_q import glf_q
from clcalib.calibrate.recipes.gptq import gptq
from clcalib.calibrate.recipes.last_phase import with_last_phase
from clcalib.calibrate.recipes.nearest import nearest
from clcalib.calibrate.recipes.pd_quant import pd_quant
from clcalib.calibrate.recipes.qdrop import qdrop
from clcalib.calibrate.recipes.scale_only import scale_only
from clcalib.calibrate.recipes.straight_through import straight_through
from clcalib.calibrate.recipes.tuning import with_tuning

RECIPES: dict[str, Callable[..., Recipe]] = {
    "nearest": nearest,
    "gptq": gptq,
    "adaround": adaround,
    "brecq": brecq,
    "scale_only": scale_only,
    "qdrop": qdrop,
    "genie_m": genie_m,
    "straight_through": straight_through,
    "pd_quant": pd_quant,
    "cl_calib": cl_calib,
    "glf_q": glf_q,
    "fast": fast,
}

# What can be laid over any recipe, in this order; each has a section of its own.
ADDITIONS: dict[str, Callable[..., Recipe]] = {
    "biases": with_biases,
    "last_phase": with_last_phase,
    "tuning": with_tuning,
    "contrastive": with_contrastive,
}

__all__ = [
    "ADDITIONS",
    "RECIPES",
    "adaround",
    "brecq",
    "cl_calib",
    "fast",
    "genie_m",
    "glf_q",
    "gptq",
    "nearest",
    "pd_quant",
    "qdrop",
    "scale_only",
    "straight_through",
    "with_biases",
    "with_contrastive",
    "with_last_phase",
    "with_tuning",
]
