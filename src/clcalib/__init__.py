"""clcalib: post-training quantization of PyTorch networks, with the contrastive calibration of CL-Calib."""

from __future__ import annotations

from clcalib import tracking
from clcalib.calibrate import recipes
from clcalib.calibrate.recipe import Phase, Recipe, Term
from clcalib.calibrate.recipes.cl_calib import with_contrastive
from clcalib.calibrate.recipes.last_phase import with_last_phase
from clcalib.capture.chain import Chain, capture
from clcalib.capture.describe import describe
from clcalib.data.augmentation import augmented
from clcalib.data.calibration import CalibrationSet, EvaluationSet
from clcalib.data.division import halves, kept_aside
from clcalib.estimate import Estimate, estimate
from clcalib.mixed_precision import choose_widths, quantize_to_budget
from clcalib.pipeline import QuantizationResult, load, quantize
from clcalib.quant.policy import Bits, Override
from clcalib.report.page.render import write_report
from clcalib.report.record import RunRecord
from clcalib.target_accuracy import quantize_to_target
from clcalib.team.team import Team
from clcalib.width_search import Budget

__version__ = "0.1.0"

__all__ = [
    "Bits",
    "Budget",
    "CalibrationSet",
    "Chain",
    "Estimate",
    "EvaluationSet",
    "Override",
    "Phase",
    "QuantizationResult",
    "Recipe",
    "RunRecord",
    "Team",
    "Term",
    "augmented",
    "capture",
    "choose_widths",
    "describe",
    "estimate",
    "halves",
    "kept_aside",
    "load",
    "quantize",
    "quantize_to_budget",
    "quantize_to_target",
    "recipes",
    "tracking",
    "with_contrastive",
    "with_last_phase",
    "write_report",
]
