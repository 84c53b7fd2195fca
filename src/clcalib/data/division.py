"""Dividing a set of images in two, so that what decides something is not what judges it."""

from __future__ import annotations

from clcalib.data.calibration import CalibrationSet, EvaluationSet
from clcalib.errors import DataError


def kept_aside(images: CalibrationSet, count: int) -> tuple[CalibrationSet, CalibrationSet]:
    """All images but the last ``count``, and these; to be done before copies are added by ``augmented``.

    Raises:
        DataError: less than one image would be left on either side.

    Example:
        >>> import torch
        >>> rest, aside = kept_aside(CalibrationSet.from_tensor(torch.zeros(10, 3, 8, 8)), 2)
        >>> len(rest), len(aside)
        (8, 2)
    """
    if not 0 < count < len(images):
        expected = f"from 1 to {len(images) - 1} of the {len(images)} calibration images"
        raise DataError("guard.images", expected, count, "keep fewer aside, or give more images")
    rest = range(len(images) - count)
    return _part(images, rest), _part(images, range(len(images) - count, len(images)))


def halves(images: EvaluationSet) -> tuple[EvaluationSet, EvaluationSet]:
    """The images at even places, and those at odd ones: images that are sorted by class are divided fairly.

    Raises:
        DataError: there is only one image.
    """
    if len(images) < 2:
        raise DataError("evaluation", "at least 2 images, since one half decides and the other reports", len(images))
    return _half(images, 0), _half(images, 1)


def _part(images: CalibrationSet, places: range) -> CalibrationSet:
    origin = images.provenance
    indices = None if origin.indices is None else [origin.indices[place] for place in places]
    chosen = images.images[places.start : places.stop]
    return CalibrationSet.from_tensor(chosen, source=origin.source, indices=indices, transform=origin.transform)


def _half(images: EvaluationSet, first: int) -> EvaluationSet:
    origin = images.provenance
    labels = None if images.labels is None else images.labels[first::2]
    indices = None if origin.indices is None else origin.indices[first::2]
    return EvaluationSet.from_tensor(
        images.images[first::2],
        labels,
        source=origin.source,
        indices=indices,
        transform=origin.transform,
        class_names=images.class_names,
        image_names=images.image_names[first::2],
    )
