from __future__ import annotations

import dataclasses
import hashlib
import struct

import pytest
import torch

from clcalib.data.calibration import CalibrationSet, EvaluationSet, check_compatible, digest, stack
from clcalib.errors import DataError


def test_from_tensor_takes_a_private_contiguous_float32_copy() -> None:
    images = torch.randn(4, 8, 8, 3, dtype=torch.float64).permute(0, 3, 1, 2).requires_grad_()
    calibration = CalibrationSet.from_tensor(images)
    assert calibration.images.dtype == torch.float32
    assert calibration.images.is_contiguous()
    assert not calibration.images.requires_grad
    assert torch.equal(calibration.images, images.detach().float())
    with torch.no_grad():
        images.zero_()
    assert calibration.images.abs().sum() > 0
    assert len(calibration) == 4


def test_a_float32_tensor_is_copied_too() -> None:
    images = torch.ones(2, 3)
    calibration = CalibrationSet.from_tensor(images)
    images.zero_()
    assert torch.equal(calibration.images, torch.ones(2, 3))


def test_sets_are_frozen() -> None:
    calibration = CalibrationSet.from_tensor(torch.zeros(2, 3))
    with pytest.raises(dataclasses.FrozenInstanceError):
        calibration.images = torch.ones(2, 3)  # type: ignore[misc]


def test_provenance_tells_source_places_transform_and_digest() -> None:
    images = torch.arange(6.0).reshape(2, 3)
    provenance = CalibrationSet.from_tensor(images, source="here", indices=[5, 1], transform="none at all").provenance
    assert (provenance.source, provenance.indices, provenance.transform) == ("here", (5, 1), "none at all")
    expected = hashlib.sha256(b"torch.float32 (2, 3) " + struct.pack("<6f", *range(6))).hexdigest()
    assert provenance.digest == expected


def test_digest_sees_type_shape_and_every_byte() -> None:
    images = torch.zeros(2, 6)
    changed = images.clone()
    changed[1, 5] = -0.0
    others = [images.reshape(6, 2), images.to(torch.int32), changed, torch.zeros(2, 3, 2)]
    assert len({digest(tensor) for tensor in [images, *others]}) == 5
    assert digest(images) == digest(torch.zeros(6, 2).T)
    assert digest(torch.tensor(1.0)) != digest(torch.tensor([1.0]))


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (torch.zeros(0, 3, 8, 8), "images: expected at least one image, got shape"),
        (torch.zeros(2, 3, 0, 8), "images: expected at least one image"),
        (torch.zeros(2, 3, 8, 8, dtype=torch.uint8), "images: expected a floating type, got torch.uint8; normalise"),
        (torch.zeros(2, 3, dtype=torch.complex64), "images: expected a floating type"),
        (torch.zeros(5), "images: expected at least 2 dimensions"),
        (torch.tensor(1.0), "images: expected at least 2 dimensions"),
        ([torch.zeros(3)], "images: expected a tensor .* got list; use from_images"),
    ],
)
def test_what_is_not_a_batch_of_images_is_refused(images: torch.Tensor, message: str) -> None:
    for kind in (CalibrationSet, EvaluationSet):
        with pytest.raises(DataError, match=message):
            kind.from_tensor(images)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf"), 1e300])
def test_values_that_are_not_finite_are_counted_and_the_first_is_named(value: float) -> None:
    images = torch.zeros(6, 3, 4, 4, dtype=torch.float64)
    images[3, 1, 2, 2] = images[5, 0, 0, 0] = value
    with pytest.raises(DataError, match="infinity in 2 of 6 images, first image 3"):
        CalibrationSet.from_tensor(images)


def test_the_constructor_checks_too() -> None:
    provenance = CalibrationSet.from_tensor(torch.zeros(2, 3)).provenance
    with pytest.raises(DataError, match="finite values"):
        CalibrationSet(torch.full((2, 3), float("nan")), provenance)
    with pytest.raises(DataError, match="contiguous float32"):
        CalibrationSet(torch.zeros(2, 3).T, provenance)
    with pytest.raises(DataError, match="int64 on the CPU"):
        EvaluationSet(torch.zeros(2, 3), torch.zeros(2, dtype=torch.int32), provenance)


def test_from_images_stacks_and_names_the_first_odd_image() -> None:
    images = [torch.full((3, 4, 4), float(value)) for value in range(3)]
    assert torch.equal(CalibrationSet.from_images(images).images, torch.stack(images))
    images[2] = torch.zeros(3, 4, 5)
    with pytest.raises(
        DataError, match=r"\(3, 4, 4\) as image 0 has, got \(3, 4, 5\) \(image 2\); set resize and crop"
    ):
        CalibrationSet.from_images(images)
    with pytest.raises(DataError, match="at least one image, got none"):
        CalibrationSet.from_images([])
    with pytest.raises(DataError, match="got list"):
        CalibrationSet.from_images([[1.0]])  # type: ignore[list-item]


def test_stack_uses_the_names_given() -> None:
    with pytest.raises(DataError, match=r"as a.png has, got \(2,\) \(b.png\)"):
        stack([torch.zeros(1), torch.zeros(2)], ["a.png", "b.png"])


def test_labels_become_private_int64() -> None:
    labels = torch.tensor([2, 0], dtype=torch.uint8)
    evaluation = EvaluationSet.from_tensor(torch.zeros(2, 3), labels)
    labels.zero_()
    assert evaluation.labels is not None
    assert evaluation.labels.dtype == torch.int64
    assert evaluation.labels.tolist() == [2, 0]
    assert EvaluationSet.from_tensor(torch.zeros(2, 3)).labels is None


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (torch.tensor([0, 1, 2]), r"labels: expected shape \(2,\).*got \(3,\)"),
        (torch.tensor([[0], [1]]), r"got \(2, 1\)"),
        (torch.tensor([0.0, 1.0]), "whole numbers, got torch.float32"),
        (torch.tensor([True, False]), "whole numbers, got torch.bool"),
        (torch.tensor([0, -1]), "classes from 0 on, got -1 at image 1"),
        ([0, 1], "whole numbers, got list"),
    ],
)
def test_labels_that_do_not_fit_are_refused(labels: torch.Tensor, message: str) -> None:
    with pytest.raises(DataError, match=message):
        EvaluationSet.from_tensor(torch.zeros(2, 3), labels)


def test_check_compatible_names_the_argument() -> None:
    calibration = CalibrationSet.from_tensor(torch.zeros(2, 3, 8, 8))
    check_compatible(calibration, EvaluationSet.from_tensor(torch.zeros(9, 3, 8, 8)), "evaluation")
    with pytest.raises(DataError, match=r"held_out: expected images of shape \(3, 8, 8\).*got \(1, 8, 8\)"):
        check_compatible(calibration, CalibrationSet.from_tensor(torch.zeros(9, 1, 8, 8)), "held_out")
