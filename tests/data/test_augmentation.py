"""Augmented copies: where they stand, that they repeat, and their formulas against slow references."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tests.reference import augmentation as reference
from tests.tiny import images, tiny

import clcalib
from clcalib.capture.chain import capture
from clcalib.data.augmentation import AUGMENTATIONS, _Copy, augmented
from clcalib.data.calibration import CalibrationSet
from clcalib.data.selection import uniforms
from clcalib.errors import DataError, EqualCopiesWarning
from clcalib.job import _keys
from clcalib.objectives.batch import Need

COUNT = 12


def calibration(count=COUNT, size=16):
    pictures = torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(3))
    return CalibrationSet.from_tensor(pictures, source="here", indices=range(count), transform="resized")


@pytest.mark.parametrize("names", [[name] for name in AUGMENTATIONS] + [["flip", "crop", "cutmix"]])
@pytest.mark.parametrize("copies", [1, 3])
@pytest.mark.filterwarnings("ignore::clcalib.errors.EqualCopiesWarning")
def test_originals_come_first_and_untouched(names, copies):
    originals = calibration()
    more = augmented(originals, names, copies=copies, seed=5)
    assert more.images.shape == (COUNT * (1 + copies), 3, 16, 16)
    assert more.images.dtype == torch.float32
    assert torch.equal(more.images[:COUNT], originals.images)
    assert not torch.equal(more.images[COUNT : 2 * COUNT], originals.images)
    assert more.provenance.indices == tuple(range(COUNT)) * (1 + copies)
    assert more.provenance.transform == f"resized; {'+'.join(names)} x {copies} behind the originals, seed 5"
    assert more.provenance.digest != originals.provenance.digest


@pytest.mark.parametrize("name", ["crop", "mixup", "cutmix"])
def test_the_seed_decides_and_fewer_copies_are_the_beginning(name):
    first, again, other = (augmented(calibration(), [name], copies=2, seed=seed).images for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(augmented(calibration(), [name], copies=1).images, first[: 2 * COUNT])
    assert not torch.equal(first[COUNT : 2 * COUNT], first[2 * COUNT :])


def test_every_second_copy_is_mirrored():
    originals = calibration()
    with pytest.warns(EqualCopiesWarning, match="of 3 copies by flip alone only the first is new"):
        parts = augmented(originals, ["flip"], copies=3).images.split(COUNT)
    assert torch.equal(parts[1], originals.images.flip(3))
    assert torch.equal(parts[2], originals.images)
    assert torch.equal(parts[3], parts[1])


def numbers(name, column, copy=1, seed=0):
    return uniforms(COUNT, seed, copy, list(AUGMENTATIONS).index(name), column)


def test_crop_shifts_with_reflection():
    pictures = calibration().images.numpy()
    moved = augmented(CalibrationSet.from_tensor(torch.from_numpy(pictures)), ["crop"]).images[COUNT:].numpy()
    down, right = (np.floor(numbers("crop", axis) * 5).astype(int) - 2 for axis in (0, 1))
    assert set(down) | set(right) <= {-2, -1, 0, 1, 2}
    for index in range(COUNT):
        np.testing.assert_array_equal(moved[index], reference.shifted(pictures[index], down[index], right[index]))


def test_mixup_is_a_mean_of_two_images():
    pictures = calibration().images.numpy()
    expected = reference.mixup(pictures, numbers("mixup", 0), reference.partners(numbers("mixup", 3)))
    mixed = augmented(calibration(), ["mixup"]).images[COUNT:].numpy()
    np.testing.assert_allclose(mixed, expected, rtol=1e-5, atol=1e-6)


def test_cutmix_pastes_a_box():
    pictures = calibration().images.numpy()
    columns = [numbers("cutmix", column) for column in (0, 1, 2)]
    expected = reference.cutmix(pictures, *columns, reference.partners(numbers("cutmix", 3)))
    np.testing.assert_array_equal(augmented(calibration(), ["cutmix"]).images[COUNT:].numpy(), expected)


def test_boxes_have_the_area_that_was_drawn():
    """E(1 - l) is 1/2; boxes are cut at the border, which leaves (2/3)^2-like shares: between 0.25 and 0.45."""
    pictures = torch.arange(2000.0).view(-1, 1, 1, 1).expand(-1, 1, 32, 32)
    mixed = AUGMENTATIONS["cutmix"](pictures, _Copy(0, 1, 3))
    share = float((mixed != pictures).float().mean())
    assert 0.25 < share < 0.45


def test_partners_are_other_images():
    lonely = torch.stack([torch.full((1, 8, 8), float(index)) for index in range(50)])
    mixed = AUGMENTATIONS["mixup"](lonely, _Copy(1, 1, 2))
    assert not torch.equal(mixed, lonely)
    assert bool((mixed != lonely).flatten(1).any(1).all())


def test_uniform_numbers_do_not_depend_on_their_count():
    many = uniforms(10_000, 7, 1, 2)
    np.testing.assert_array_equal(many[:10], uniforms(10, 7, 1, 2))
    assert 0 <= many.min() < many.max() < 1
    assert abs(many.mean() - 0.5) < 0.01
    assert abs(np.corrcoef(many, uniforms(10_000, 7, 1, 3))[0, 1]) < 0.05


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        ({}, {"names": ["flop"]}, "names: expected a list of names among flip, crop, mixup, cutmix, got 'flop'"),
        ({}, {"names": []}, "names: .* got none"),
        ({}, {"names": "flip"}, "names: .* got 'flip'"),
        ({}, {"names": ["flip", "flip"]}, "names: expected each operation once"),
        ({}, {"names": ["flip"], "copies": 0}, "copies: expected a whole number above 0"),
        ({}, {"names": ["crop"], "seed": -1}, "seed: expected"),
        ({"images": torch.zeros(4, 7)}, {"names": ["flip"]}, r"calibration: expected images \(N, C, H, W\)"),
        ({"images": torch.zeros(1, 3, 4, 4)}, {"names": ["cutmix"]}, "calibration: expected at least two images"),
    ],
)
def test_bad_arguments_are_told(change, options, message):
    originals = CalibrationSet.from_tensor(change.get("images", torch.zeros(4, 3, 8, 8)))
    with pytest.raises(DataError, match=message):
        augmented(originals, options.pop("names"), **options)


def test_a_changed_image_has_a_key_of_its_own_and_a_copy_has_not():
    with pytest.warns(EqualCopiesWarning):  # the second copy equals the originals
        more = augmented(CalibrationSet.from_tensor(images(8)), ["flip"], copies=2)
    keys = _keys(capture(tiny(), images(2)), more.images)[Need.FEATURES]
    assert keys.identity.tolist() == [*range(16), *range(8)]


def test_mixed_copies_help_where_images_are_few():
    """The gap between calibration and other images, which is overfitting, becomes smaller."""
    originals, others = CalibrationSet.from_tensor(images(8)), CalibrationSet.from_tensor(images(64, seed=9))
    sets = originals, augmented(originals, ["cutmix", "flip"], copies=7)
    recipe = clcalib.recipes.qdrop(steps=150, batch_size=8)
    errors = []
    for chosen in sets:
        result = clcalib.quantize(
            tiny(), chosen, recipe=recipe, bits=clcalib.Bits(2, 8), held_out=others, measured_images=64
        )
        errors.append(sum(unit.reconstruction_error.held_out.after for unit in result.record.units))
    assert errors[1] < errors[0]
