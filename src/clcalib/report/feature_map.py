"""The features of the float and of the quantized network in one plane: principal components of both together."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from clcalib.capture.chain import Chain
from clcalib.capture.graph import value_of
from clcalib.capture.outputs import end_node
from clcalib.capture.running import advance
from clcalib.objectives.keys import as_vectors
from clcalib.report.evidence import FeatureMap, rounded

_DIGITS = 4


@torch.no_grad()
def feature_map(
    floating: Chain,
    quantized: Chain,
    images: Tensor,
    *,
    which: Literal["evaluation", "calibration"],
    labels: Tensor | None = None,
) -> FeatureMap | None:
    """Project the penultimate features of both networks onto their first two principal components.

    Args:
        floating: the float chain.
        quantized: the quantized one.
        images: (N, ...) on their device.
        which: what the images are.
        labels: (N,) their classes; without them what the float network names, where its output is (N, classes).

    Returns:
        the map, or None where there are fewer than three images or all features are equal.
    """
    ends = floating.subgraph((floating.input_name,), (floating.feature_name, floating.output_name))
    own_end = quantized.subgraph((quantized.input_name,), (quantized.feature_name,))
    features, outputs = advance(ends, (images,), as_vectors)
    (own,) = advance(own_end, (images,), as_vectors)
    both = torch.cat((features, own)).cpu().double()
    plane, explained = principal_plane(both)
    if len(images) < 3 or plane is None:
        return None
    names_classes = value_of(end_node(floating.module.graph)).ndim == 2 and outputs.shape[1] > 1
    classes = labels if labels is not None else outputs.argmax(1).cpu() if names_classes else None
    points = [(rounded(x, _DIGITS), rounded(y, _DIGITS)) for x, y in plane.tolist()]
    return FeatureMap(
        node=floating.feature_name,
        images=which,
        explained=explained,
        floating=tuple(points[: len(images)]),
        quantized=tuple(points[len(images) :]),
        classes=None if classes is None else tuple(classes.tolist()),
    )


def principal_plane(vectors: Tensor) -> tuple[Tensor | None, tuple[float, float]]:
    """Coordinates (N, 2) along the two largest principal components, and their shares of the variance.

    The sign of a component is that which makes its largest coordinate positive, so that equal vectors give equal maps.
    None where all vectors are equal.

    Args:
        vectors: (N, d), float64.
    """
    centred = vectors - vectors.mean(0)
    total = float(centred.square().sum())
    if not total > 0:
        return None, (0.0, 0.0)
    # X = U S V': the coordinates U S come from the smaller of the two Gram matrices.
    if centred.shape[0] <= centred.shape[1]:
        values, left = torch.linalg.eigh(centred @ centred.T)
        plane = left[:, -2:].flip(1) * values[-2:].flip(0).clamp(min=0).sqrt()
    else:
        values, right = torch.linalg.eigh(centred.T @ centred)
        plane = centred @ right[:, -2:].flip(1)
    if plane.shape[1] < 2:
        plane = torch.cat((plane, torch.zeros_like(plane)), 1)
    largest = plane.gather(0, plane.abs().argmax(0, keepdim=True))
    plane = plane * torch.where(largest < 0, -1.0, 1.0)
    first, second = (float(column) / total for column in plane.square().sum(0))
    return plane, (min(1.0, rounded(first)), min(1.0, rounded(second)))
