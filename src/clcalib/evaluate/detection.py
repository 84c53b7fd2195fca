"""How far a quantized detector finds what the float one finds: agreement of boxes and classes, without labels."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from clcalib.capture.submodule import feed_of
from clcalib.errors import ArgumentError

Detections = Mapping[str, Tensor]  # of one image: boxes (K, 4) as x1, y1, x2, y2; labels (K,); scores (K,)

SCORE_THRESHOLD = 0.5
_NAMES = ("boxes", "labels", "scores")
_BATCH = 16


@dataclasses.dataclass(frozen=True)
class DetectionAgreement:
    """Attributes:
    matched: share of the float network's detections that the quantized one finds too; None where there are none.
    overlap: mean intersection over union of the matched ones; None where nothing is matched.
    count: detections of the float network.
    """

    matched: float | None
    overlap: float | None
    count: int


def detection_agreement(
    floats: Sequence[Detections],
    own: Sequence[Detections],
    *,
    score_threshold: float = SCORE_THRESHOLD,
    least_overlap: float = 0.5,
) -> DetectionAgreement:
    """Match the detections of two networks image by image.

    Of both only detections with a score of at least ``score_threshold`` count, so one that falls below it is lost.  In
    the order of their scores, each of the float network takes the free one of the same label with the largest
    intersection over union; it is matched if that is at least ``least_overlap``.

    Args:
        floats: the float network's detections, one table for each image, as torchvision's detectors return them.
        own: the quantized network's, of the same images.
        score_threshold: from 0 to 1.
        least_overlap: from 0 to 1.

    Raises:
        ArgumentError: the images are not as many, or something is missing in a table.

    Example:
        >>> one = {"boxes": torch.tensor([[0.0, 0, 2, 2]]), "labels": torch.tensor([1]), "scores": torch.tensor([0.9])}
        >>> detection_agreement([one], [one])
        DetectionAgreement(matched=1.0, overlap=1.0, count=1)

    Source: the matching is that of PASCAL VOC (Everingham et al. 2010, section 4.2), with the float network's
    detections in the place of the ground truth.
    """
    if len(floats) != len(own):
        raise ArgumentError("own", f"detections of {len(floats)} images, as in floats", len(own))
    overlaps: list[float] = []
    count = 0
    for float_image, own_image in zip(floats, own, strict=True):
        first, second = (_sorted(image, score_threshold) for image in (float_image, own_image))
        overlaps += _matches(first, second, least_overlap)
        count += len(first["scores"])
    matched = len(overlaps) / count if count else None
    return DetectionAgreement(matched, sum(overlaps) / len(overlaps) if overlaps else None, count)


@torch.no_grad()
def is_detector(model: nn.Module, images: Tensor) -> bool:
    """Whether the model answers images (N, ...), as a tensor or as a list, with a table of detections for each.

    Raises:
        ArgumentError: it takes images in neither form.
    """
    answer = feed_of(model, images, "evaluation")(images)
    is_list = isinstance(answer, list | tuple) and len(answer) == len(images)
    return is_list and all(isinstance(image, Mapping) and set(_NAMES) <= set(image) for image in answer)


@torch.no_grad()
def detections(
    model: nn.Module, images: Tensor, *, batch_size: int = _BATCH, device: str | torch.device = "cpu"
) -> list[Detections]:
    """Run a detector over images (N, ...) in batches; one table for each image, on the CPU.

    Raises:
        ArgumentError: the model takes images neither as a tensor nor as a list.
    """
    feed, found = feed_of(model, images[:1].to(device), "evaluation"), list[Detections]()
    for start in range(0, len(images), batch_size):
        for image in feed(images[start : start + batch_size].to(device)):
            found.append({name: image[name].cpu() for name in _NAMES})
    return found


def intersection_over_union(boxes: Tensor, others: Tensor) -> Tensor:  # (K, 4), (L, 4) -> (K, L)
    """|A and B| / |A or B| of every pair; 0 where the union is empty."""
    corner = torch.maximum(boxes[:, None, :2], others[None, :, :2])
    opposite = torch.minimum(boxes[:, None, 2:], others[None, :, 2:])
    common = (opposite - corner).clamp(min=0).prod(2)
    areas = [(some[:, 2:] - some[:, :2]).clamp(min=0).prod(1) for some in (boxes, others)]
    union = areas[0][:, None] + areas[1][None] - common
    return torch.where(union > 0, common / union, torch.zeros_like(union))


def _sorted(image: Detections, threshold: float) -> dict[str, Tensor]:
    """The detections above the threshold, the best first, on the CPU."""
    lacking = [name for name in _NAMES if name not in image]
    if lacking:
        raise ArgumentError("floats, own", "tables with boxes, labels and scores", f"one without {', '.join(lacking)}")
    table = {name: image[name].detach().cpu() for name in _NAMES}
    order = table["scores"].argsort(descending=True, stable=True)
    order = order[table["scores"][order] >= threshold]
    return {name: tensor[order] for name, tensor in table.items()}


def _matches(first: Detections, second: Detections, least_overlap: float) -> list[float]:
    """The overlaps of the matched detections."""
    overlap = intersection_over_union(first["boxes"].double(), second["boxes"].double())
    overlap = torch.where(first["labels"][:, None] == second["labels"][None], overlap, -torch.ones_like(overlap))
    found = []
    for row in range(len(overlap)):
        if overlap.shape[1] == 0:
            break
        value, column = overlap[row].max(0)
        if float(value) >= max(least_overlap, 0.0):
            found.append(float(value))
            overlap[:, column] = -1.0  # it is taken
    return found
