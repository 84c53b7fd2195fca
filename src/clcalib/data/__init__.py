"""Images -> ``CalibrationSet``: frozen samples with their provenance."""

from clcalib.data.calibration import CalibrationSet, EvaluationSet, Provenance
from clcalib.data.sources import load_calibration, load_evaluation
from clcalib.data.transform import Transform

__all__ = ["CalibrationSet", "EvaluationSet", "Provenance", "Transform", "load_calibration", "load_evaluation"]
