from __future__ import annotations

import pytest
import torch
from tests.reference.detection import matched_overlaps

from clcalib.errors import ArgumentError
from clcalib.evaluate.detection import detection_agreement, intersection_over_union


def detections(seed: int, count: int = 12) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    corner = torch.rand(count, 2, generator=generator) * 4
    size = torch.rand(count, 2, generator=generator) * 4 + 0.5
    return {
        "boxes": torch.cat((corner, corner + size), 1),
        "labels": torch.randint(0, 2, (count,), generator=generator),
        "scores": torch.rand(count, generator=generator),
    }


def moved(image: dict[str, torch.Tensor], seed: int, by: float) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    scores = (image["scores"] + 0.1 * torch.randn(len(image["scores"]), generator=generator)).clamp(0, 1)
    return image | {
        "boxes": image["boxes"] + by * torch.randn(image["boxes"].shape, generator=generator).sort(1)[0],
        "scores": scores,
    }


@pytest.mark.parametrize("least", [0.3, 0.5, 0.75])
@pytest.mark.parametrize("threshold", [0.0, 0.4])
@pytest.mark.parametrize("by", [0.05, 0.5])
def test_matches_are_those_of_the_loop(least: float, threshold: float, by: float) -> None:
    floats = [detections(seed) for seed in range(4)]
    own = [moved(image, seed, by) for seed, image in enumerate(floats)]
    result = detection_agreement(floats, own, score_threshold=threshold, least_overlap=least)
    lists = [[{k: v.tolist() for k, v in image.items()} for image in images] for images in (floats, own)]
    columns = [matched_overlaps(a, b, threshold, least) for a, b in zip(*lists, strict=True)]
    overlaps = [value for values, _ in columns for value in values]
    count = sum(number for _, number in columns)
    assert result.count == count
    assert result.matched == pytest.approx(len(overlaps) / count)
    mean = pytest.approx(sum(overlaps) / len(overlaps), rel=1e-5) if overlaps else None
    assert result.overlap == mean


def test_what_differs_in_label_place_or_score_is_not_matched() -> None:
    one = {"boxes": torch.tensor([[0.0, 0, 4, 4]]), "labels": torch.tensor([1]), "scores": torch.tensor([0.9])}
    for other in (
        one | {"labels": torch.tensor([2])},
        one | {"boxes": torch.tensor([[3.0, 3, 7, 7]])},
        one | {"scores": torch.tensor([0.4])},
        {name: tensor[:0] for name, tensor in one.items()},
    ):
        assert detection_agreement([one], [other]).matched == 0.0
    nothing = {name: tensor[:0] for name, tensor in one.items()}
    assert detection_agreement([nothing], [one]).matched is None


def test_a_detection_is_matched_once() -> None:
    boxes = torch.tensor([[0.0, 0, 4, 4], [0.0, 0, 4, 4]])
    two = {"boxes": boxes, "labels": torch.tensor([1, 1]), "scores": torch.tensor([0.9, 0.8])}
    one = {name: tensor[:1] for name, tensor in two.items()}
    assert detection_agreement([two], [one]).matched == 0.5
    assert detection_agreement([one], [two]).matched == 1.0


def test_overlaps() -> None:
    boxes = torch.tensor([[0.0, 0, 2, 2], [1.0, 1, 3, 3], [5.0, 5, 5, 5]])
    expected = torch.tensor([[1.0, 1 / 7, 0], [1 / 7, 1, 0], [0, 0, 0]])
    assert torch.allclose(intersection_over_union(boxes, boxes), expected)


def test_bad_input_is_told() -> None:
    with pytest.raises(ArgumentError, match="detections of 2 images"):
        detection_agreement([detections(0), detections(1)], [detections(0)])
    with pytest.raises(ArgumentError, match="without labels"):
        detection_agreement([detections(0)], [{k: v for k, v in detections(0).items() if k != "labels"}])
