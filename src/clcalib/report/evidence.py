"""What a page shows beyond ``run.json``: predictions, changed images, histograms and features (``report.json``).

It is gathered once, while the model and the images are at hand, and is checked field by field when it is read.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from clcalib.files import write_atomically
from clcalib.report.reading import read_model
from clcalib.report.values import Count, Fraction, Frozen

EVIDENCE_FILE = "report.json"
EVIDENCE_VERSION: Literal[1] = 1
MOST_BYTES = 16 << 20  # 2,000 layers of 8 bits and 200,000 predictions have less
MOST_CHANGED = 48  # images that are shown
MOST_BINS = 512
MOST_LEVELS = 256  # of a grid of 8 bits

# What can be nothing else than a small picture.
Picture = Annotated[str, Field(pattern=r"^data:image/(png|jpeg);base64,[A-Za-z0-9+/]+={0,2}$", max_length=60_000)]
Point = tuple[float, float]


class PredictionRecord(Frozen):
    """The classes that the networks name for the evaluation images.

    Attributes:
        digest: of the images; two runs can be compared image by image where it is the same.
        labels: the right classes, or None where they are not known.
        floating, nearest, quantized: of the float network, of nearest rounding (None where it is not at hand) and of
            the result.
        class_names: in the order of their numbers; empty where only these are known.
    """

    digest: str
    labels: tuple[Count, ...] | None = None
    floating: tuple[Count, ...]
    nearest: tuple[Count, ...] | None = None
    quantized: tuple[Count, ...]
    class_names: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _check_lengths(self) -> Self:
        columns = [column for column in (self.labels, self.nearest, self.quantized) if column is not None]
        if any(len(column) != len(self.floating) for column in columns):
            raise ValueError("labels and predictions are not as many")
        return self

    def class_name(self, number: int) -> str:
        """What a class is called."""
        return self.class_names[number] if number < len(self.class_names) else f"class {number}"


class ChangedImage(Frozen):
    """An image for which the result names another class than the float network.

    Attributes:
        place: of the image among the evaluation images; name: of its file, or empty.
        float_confidence, quantized_confidence: the share that the softmax gives to the class that is named.
        picture: a small copy of it, or None where it is none that can be shown.
    """

    place: Count
    name: str = ""
    float_confidence: Fraction
    quantized_confidence: Fraction
    picture: Picture | None = None


class HistogramRecord(Frozen):
    """Float values in equal bins, and the grid that they are rounded to.

    Attributes:
        axis: "codes", where a weight's values are divided by their channel's scale so that the grid of all channels is
            the whole numbers; "values" of an activation.
        low, high: where the first bin begins and the last one ends.
        counts: of the bins; below, above: of the values beyond them.
        clipped: the share of the values that lie more than half a step outside of the grid.
        bits: the width.
        levels: the values of the grid, rising.
    """

    axis: Literal["codes", "values"]
    low: float
    high: float
    counts: Annotated[tuple[Count, ...], Field(min_length=1, max_length=MOST_BINS)]
    below: Count = 0
    above: Count = 0
    clipped: Fraction
    bits: Annotated[int, Field(ge=2, le=8)]
    levels: Annotated[tuple[float, ...], Field(min_length=1, max_length=MOST_LEVELS)]

    @model_validator(mode="after")
    def _check_order(self) -> Self:
        if not self.low < self.high:
            raise ValueError("the bins have no width")
        if any(later <= earlier for earlier, later in zip(self.levels, self.levels[1:], strict=False)):
            raise ValueError("the levels do not rise")
        return self


class LayerEvidence(Frozen):
    """What was looked at in one layer.

    Attributes:
        name: of the layer, or of the tensor that is quantized.
        weights: how many numbers its weight has; flipped: the share of them that is not rounded to the nearest level of
            the layer's grid; None where the weight is in float.
        weight, activation: histograms of its float weight, and of what its input's quantizer gets.
    """

    name: str
    weights: Count = 0
    flipped: Fraction | None = None
    weight: HistogramRecord | None = None
    activation: HistogramRecord | None = None


class FeatureMap(Frozen):
    """The penultimate features of both networks, in the plane of the two largest principal components.

    Attributes:
        node: whose values they are.
        images: which images these are, "evaluation" or "calibration".
        explained: the shares of the variance along both axes.
        floating, quantized: a point for each image.
        classes: of the images: their labels, or else what the float network names; None where there are none.
    """

    node: str
    images: Literal["evaluation", "calibration"]
    explained: tuple[Fraction, Fraction]
    floating: tuple[Point, ...]
    quantized: tuple[Point, ...]
    classes: tuple[Count, ...] | None = None

    @model_validator(mode="after")
    def _check_lengths(self) -> Self:
        columns = [self.quantized] if self.classes is None else [self.quantized, self.classes]
        if any(len(column) != len(self.floating) for column in columns):
            raise ValueError("the points of both networks, and the classes, are not as many")
        return self


class Evidence(Frozen):
    """Everything that was gathered; a part that could not be is None or empty.

    Attributes:
        float_bytes: what the float network's parameters take in float32.
        images: how many images activations were looked at on.
    """

    schema_version: Literal[1] = EVIDENCE_VERSION
    float_bytes: Count
    images: Count
    predictions: PredictionRecord | None = None
    changed: Annotated[tuple[ChangedImage, ...], Field(max_length=MOST_CHANGED)] = ()
    layers: tuple[LayerEvidence, ...] = ()
    features: FeatureMap | None = None

    @model_validator(mode="after")
    def _check_places(self) -> Self:
        count = 0 if self.predictions is None else len(self.predictions.floating)
        if any(image.place >= count for image in self.changed):
            raise ValueError("a changed image is none of the evaluation images")
        return self


def write_evidence(evidence: Evidence, path: str | Path) -> None:
    """Write the evidence as JSON, atomically."""
    text = json.dumps(evidence.model_dump(mode="json"), ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    write_atomically(path, (text + "\n").encode())


def read_evidence(path: str | Path) -> Evidence:
    """Read what :func:`write_evidence` wrote.

    Raises:
        FileNotFoundError: there is no such file.
        CheckpointError: the file is none of this version; the message names the field.
        NumericalError: a number in it is not finite.
    """
    name = f"the evidence of a report of version {EVIDENCE_VERSION}"
    remedy = "delete it, and `clcalib report --gather` makes it anew"
    return read_model(path, Evidence, name, remedy=remedy, most=MOST_BYTES)


def rounded(value: float, digits: int = 5) -> float:
    """A number with as many significant digits as a picture needs.

    Example:
        >>> rounded(0.123456789)
        0.12346
    """
    return float(f"{value:.{digits}g}") if math.isfinite(value) else 0.0
