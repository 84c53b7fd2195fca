"""Gathers what a page shows beyond the record: on a bounded number of images, without changing anything."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from clcalib.capture.chain import Chain
from clcalib.data.calibration import EvaluationSet
from clcalib.evaluate.comparison import Predictions
from clcalib.quant.insert import QuantizedChain, tensor_at
from clcalib.report.changed_images import changed_images
from clcalib.report.evidence import ChangedImage, Evidence, LayerEvidence, PredictionRecord
from clcalib.report.feature_map import feature_map
from clcalib.report.histograms import activation_histograms, flipped_share, weight_histogram

FEATURE_IMAGES = 256
PART_IMAGES = 64  # of a part: the whole model runs for them
HISTOGRAM_IMAGES = 32
MOST_PREDICTIONS = 200_000  # of more images none are kept

Colours = tuple[Sequence[float], Sequence[float]]  # mean and standard deviation of the channels


@torch.no_grad()
def gather(
    floating: Chain,
    quantized: QuantizedChain,
    images: Tensor,
    *,
    which: Literal["evaluation", "calibration"],
    predictions: Predictions | None = None,
    evaluation: EvaluationSet | None = None,
    colours: Colours | None = None,
) -> Evidence:
    """Look at a finished network.

    Args:
        floating: the float chain.
        quantized: the finished one.
        images: what the chains read, (N, ...); the first ``FEATURE_IMAGES`` are looked at.
        which: what these are.
        predictions: on the evaluation images, or None.
        evaluation: these images, where there are predictions.
        colours: what the evaluation images were normalised with, or None where it is not known.
    """
    device = next(iter(quantized.chain.module.state_dict().values())).device
    images = images[:FEATURE_IMAGES].to(device)
    labels = None
    if which == "evaluation" and evaluation is not None and evaluation.labels is not None:
        labels = evaluation.labels[: len(images)]
    record: PredictionRecord | None = None
    changed: tuple[ChangedImage, ...] = ()
    if predictions is not None and evaluation is not None and len(evaluation) <= MOST_PREDICTIONS:
        record = _record(predictions, evaluation)
        known = colours if evaluation.provenance.transform != "none" else None
        changed = changed_images(predictions, evaluation.images, evaluation.labels, evaluation.image_names, known)
    return Evidence(
        float_bytes=sum(4 * parameter.numel() for parameter in floating.module.parameters()),
        images=min(HISTOGRAM_IMAGES, len(images)),
        predictions=record,
        changed=changed,
        layers=_layers(floating, quantized, images[:HISTOGRAM_IMAGES]),
        features=feature_map(floating, quantized.chain, images, which=which, labels=labels),
    )


def _record(predictions: Predictions, evaluation: EvaluationSet) -> PredictionRecord:
    return PredictionRecord(
        digest=evaluation.provenance.digest,
        labels=None if evaluation.labels is None else tuple(evaluation.labels.tolist()),
        floating=tuple(predictions.floating.tolist()),
        nearest=None if predictions.nearest is None else tuple(predictions.nearest.tolist()),
        quantized=tuple(predictions.quantized.tolist()),
        class_names=evaluation.class_names,
    )


def _layers(floating: Chain, quantized: QuantizedChain, images: Tensor) -> tuple[LayerEvidence, ...]:
    """Weights in the order of their layers, then the tensors that no layer with weights has by its name."""
    activations = activation_histograms(quantized, images)
    found = []
    for layer in dict.fromkeys((*quantized.weights, *activations)):
        values: dict[str, object] = {"name": layer, "activation": activations.get(layer)}
        if layer in quantized.weights:
            weight, quantizer = tensor_at(floating.module, quantized.sources[layer]), quantized.weight(layer)
            values |= {
                "weights": weight.numel(),
                "flipped": flipped_share(weight, quantizer),
                "weight": weight_histogram(weight, quantizer),
            }
        found.append(LayerEvidence.model_validate(values))
    return tuple(found)
