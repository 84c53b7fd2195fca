"""clcalib: post-training quantization of PyTorch networks, with the contrastive calibration of CL-Calib.

A name is imported when it is first used: torch takes seconds, and who asks a command for its help has no use for it.
"""

from __future__ import annotations

import importlib.util
import sys
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from clcalib import tracking
    from clcalib.calibrate import recipes
    from clcalib.calibrate.recipe import Phase, Recipe, Term
    from clcalib.calibrate.recipes.biases import with_biases
    from clcalib.calibrate.recipes.cl_calib import with_contrastive
    from clcalib.calibrate.recipes.last_phase import with_last_phase
    from clcalib.calibrate.recipes.tuning import with_tuning
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
    "with_biases",
    "with_contrastive",
    "with_last_phase",
    "with_tuning",
    "write_report",
]

# Where each of them is; the imports above tell type checkers the same.
_MODULES = {"recipes": "clcalib.calibrate.recipes", "tracking": "clcalib.tracking"}
_PLACES = {
    "Bits": "clcalib.quant.policy",
    "Budget": "clcalib.width_search",
    "CalibrationSet": "clcalib.data.calibration",
    "Chain": "clcalib.capture.chain",
    "Estimate": "clcalib.estimate",
    "EvaluationSet": "clcalib.data.calibration",
    "Override": "clcalib.quant.policy",
    "Phase": "clcalib.calibrate.recipe",
    "QuantizationResult": "clcalib.pipeline",
    "Recipe": "clcalib.calibrate.recipe",
    "RunRecord": "clcalib.report.record",
    "Team": "clcalib.team.team",
    "Term": "clcalib.calibrate.recipe",
    "augmented": "clcalib.data.augmentation",
    "capture": "clcalib.capture.chain",
    "choose_widths": "clcalib.mixed_precision",
    "describe": "clcalib.capture.describe",
    "estimate": "clcalib.estimate",
    "halves": "clcalib.data.division",
    "kept_aside": "clcalib.data.division",
    "load": "clcalib.pipeline",
    "quantize": "clcalib.pipeline",
    "quantize_to_budget": "clcalib.mixed_precision",
    "quantize_to_target": "clcalib.target_accuracy",
    "with_biases": "clcalib.calibrate.recipes.biases",
    "with_contrastive": "clcalib.calibrate.recipes.cl_calib",
    "with_last_phase": "clcalib.calibrate.recipes.last_phase",
    "with_tuning": "clcalib.calibrate.recipes.tuning",
    "write_report": "clcalib.report.page.render",
}


class _Package(ModuleType):
    """The package, whose functions ``capture`` and ``estimate`` the modules of these names do not take the place of."""

    def __setattr__(self, name: str, value: object) -> None:
        if name not in _PLACES or not isinstance(value, ModuleType):
            super().__setattr__(name, value)


def _found(name: str) -> object:
    """What a name stands for; a module inside the package has its own, as if it had been imported."""
    if name in _PLACES:
        return getattr(importlib.import_module(_PLACES[name]), name)
    module = _MODULES.get(name, f"{__name__}.{name}")
    if name.startswith("_") or importlib.util.find_spec(module) is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return importlib.import_module(module)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


if not TYPE_CHECKING:  # to type checkers a name that is not imported above is a mistake

    def __getattr__(name: str) -> object:
        value = globals()[name] = _found(name)
        return value


sys.modules[__name__].__class__ = _Package
