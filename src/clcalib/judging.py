"""What the result of a run is worth beside the float network and nearest rounding, on the evaluation images."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import torch
from torch import nn

from clcalib.data.calibration import EvaluationSet
from clcalib.errors import WorseThanNearestWarning
from clcalib.evaluate.accuracy import logits
from clcalib.evaluate.comparison import Comparison, Predictions, compare
from clcalib.evaluate.detection import SCORE_THRESHOLD, detection_agreement, detections
from clcalib.report.record import DetectionRecord


def judged(
    networks: Sequence[nn.Module], evaluation: EvaluationSet, device: torch.device
) -> tuple[Comparison, Predictions]:
    """Compare float, nearest rounding and the result, in this order; warn where the last is worse than the second."""
    outputs = [logits(network, evaluation.images, device=device) for network in networks]
    judged = compare(outputs[0], outputs[1], outputs[2], evaluation.labels)
    if judged.is_worse:
        which, values = "top-1", (judged.quantized_top1, judged.nearest_top1)
        if values[0] is None:
            which, values = "agreement with the float network", (judged.agreement, judged.nearest_agreement)
        own, nearest = (f"{100 * value:.2f} %" for value in values if value is not None)
        warnings.warn(
            f"{which} on the evaluation images is {own}, with nearest rounding {nearest}: the optimisation did harm; "
            "try more calibration images, fewer steps, a smaller rounding_rate or another recipe, and look in the "
            "table of units for the first whose held-out error grew",
            WorseThanNearestWarning,
            stacklevel=3,
        )
    return judged, Predictions.of(*outputs)


def detected(networks: Sequence[nn.Module], evaluation: EvaluationSet, device: torch.device) -> DetectionRecord:
    """Compare the detections of nearest rounding and of the result with those of float, in this order."""
    floats, *others = (detections(network, evaluation.images, device=device) for network in networks)
    nearest, own = (detection_agreement(floats, tables) for tables in others)
    return DetectionRecord(
        score_threshold=SCORE_THRESHOLD,
        detections=own.count,
        nearest_matched=nearest.matched,
        nearest_overlap=nearest.overlap,
        matched=own.matched,
        overlap=own.overlap,
    )
