"""The page about a run: left beside its result at the end, or made later from the folder."""

from __future__ import annotations

import warnings
from pathlib import Path

from clcalib.config_sections import EvaluationConfig, ImagesSection
from clcalib.data.calibration import CalibrationSet, EvaluationSet
from clcalib.data.division import halves
from clcalib.errors import ArgumentError, PageWarning
from clcalib.evaluate.accuracy import logits
from clcalib.evaluate.comparison import Predictions
from clcalib.evaluate.detection import is_detector
from clcalib.export.checkpoint import load_chain, load_checkpoint
from clcalib.model_source import load_model
from clcalib.modes import usual_modes
from clcalib.pipeline import QuantizationResult
from clcalib.report.evidence import EVIDENCE_FILE, write_evidence
from clcalib.report.gathering import FEATURE_IMAGES, PART_IMAGES, Colours, gather
from clcalib.report.record import RunRecord


def leave_page(
    result: QuantizationResult, folder: Path, images: CalibrationSet | EvaluationSet, data: ImagesSection
) -> None:
    """Write ``report.json`` and ``report.html`` beside a saved result; whatever goes wrong is a warning.

    Args:
        result: that is saved in the folder.
        folder: of the run.
        images: of evaluation, or where there are none, of calibration.
        data: how they were normalised.

    Warns:
        PageWarning: the page could not be made.
    """
    try:
        result.write_page(folder, images, colours=colours_of(data))
    except Exception as error:  # the result is there; what is only shown must not make a failure of it
        told = f"{type(error).__name__}: {error}"
        remedy = f"the result is saved, and `clcalib report {folder} --gather` tries again"
        warnings.warn(f"the page about the run could not be made ({told}); {remedy}", PageWarning, stacklevel=2)


def gather_evidence(folder: Path, config: EvaluationConfig, record: RunRecord, images: EvaluationSet | None) -> None:
    """Write ``report.json`` anew for the result in a folder.

    Args:
        folder: of the run.
        config: of the model.
        record: of the run.
        images: the evaluation images.

    Raises:
        ArgumentError: there are no evaluation images.
        ClcalibError: the model or the images cannot be used.
    """
    if images is None:
        remedy = "give --evaluation; without images the page has what run.json and trace.json say"
        raise ArgumentError("data.evaluation", "evaluation images to gather from", "none", remedy)
    model, images = load_model(config.model), as_judged(images, record)
    with usual_modes():
        loaded = load_chain(folder, model)
        read = images.images[: FEATURE_IMAGES if loaded.part is None else PART_IMAGES]
        evidence = gather(
            loaded.floating,
            loaded.quantized,
            read if loaded.part is None else loaded.part.rows(read),
            which="evaluation",
            predictions=_predictions(folder, config, images),
            evaluation=images,
            colours=colours_of(config.data),
        )
    write_evidence(evidence, folder / EVIDENCE_FILE)


def as_judged(images: EvaluationSet, record: RunRecord) -> EvaluationSet:
    """The images that the record's accuracies are of: all, or where half of them chose the widths, the other half."""
    if len(images) < 2 or images.provenance.digest == record.evaluation_digest:
        return images
    other = halves(images)[1]
    return other if other.provenance.digest == record.evaluation_digest else images


def colours_of(data: ImagesSection) -> Colours:
    """Mean and standard deviation of the channels."""
    return data.mean, data.standard_deviation


def _predictions(folder: Path, config: EvaluationConfig, images: EvaluationSet) -> Predictions | None:
    """What both networks name; None of a detector, and of a model without its weights, which would name anything."""
    model = load_model(config.model).eval()
    if config.model.weights is None or is_detector(model, images.images[:1]):
        return None
    quantized = load_checkpoint(folder, model)
    return Predictions.of(logits(model, images.images), None, logits(quantized, images.images))
