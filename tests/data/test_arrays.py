"""Images in ``.npz`` files: what is read, and that nothing else is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from clcalib.data import Transform, load_calibration, load_evaluation
from clcalib.errors import DataError, UnusableFileError
from clcalib.reading.arrays import read_arrays

PLAIN = Transform(mean=(0.0, 0.0, 0.0), standard_deviation=(1.0, 1.0, 1.0))
GREY = Transform(mean=(0.0,), standard_deviation=(1.0,))
PIXELS = np.random.default_rng(0).integers(0, 256, (5, 3, 8, 10), dtype=np.uint8)  # (N, C, H, W)


def saved(tmp_path: Path, *, is_compressed: bool = False, **arrays: Any) -> Path:
    path = tmp_path / "images.npz"
    (np.savez_compressed if is_compressed else np.savez)(path, **arrays)
    return path


@pytest.mark.parametrize("is_compressed", [False, True])
@pytest.mark.parametrize("axes", [(0, 1, 2, 3), (0, 2, 3, 1)])
def test_pixels_of_both_orders_are_the_same_images(axes: tuple[int, ...], is_compressed: bool, tmp_path: Path) -> None:
    labels = np.array([3, 1, 2, 0, 9], dtype=np.uint8)
    path = saved(tmp_path, images=PIXELS.transpose(axes), labels=labels, other=np.zeros(3), is_compressed=is_compressed)
    found = load_evaluation(path, transform=PLAIN)
    assert torch.equal(found.images, torch.from_numpy(PIXELS).float() / 255)
    assert found.labels is not None
    assert found.labels.tolist() == [3, 1, 2, 0, 9]
    assert found.provenance.transform == PLAIN.describe()


def test_some_of_them_are_chosen_as_everywhere(tmp_path: Path) -> None:
    path = saved(tmp_path, images=PIXELS)
    some = load_calibration(path, transform=PLAIN, count=2, seed=4)
    assert some.provenance.indices is not None
    assert torch.equal(some.images, torch.from_numpy(PIXELS[list(some.provenance.indices)]).float() / 255)


def test_grey_pixels_need_no_axis_of_channels(tmp_path: Path) -> None:
    found = load_calibration(saved(tmp_path, images=PIXELS[:, 0]), transform=GREY)
    assert found.images.shape == (5, 1, 8, 10)


@pytest.mark.parametrize("kind", [np.float16, np.float32, np.float64, ">f4"])
def test_floats_are_taken_as_they_are(kind: Any, tmp_path: Path) -> None:
    values = (PIXELS / 64).astype(kind)
    found = load_calibration(saved(tmp_path, images=np.asfortranarray(values)), transform=PLAIN)
    assert torch.equal(found.images, torch.from_numpy(values.astype(np.float32)))
    assert found.provenance.transform == "none"


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"pictures": PIXELS}, "an array named images"),
        ({"images": PIXELS.astype(np.int64)}, "uint8.*int64"),
        ({"images": PIXELS[:0]}, "at least one image"),
        ({"images": np.zeros((4, 3, 5, 3), np.uint8)}, "could be meant either way"),
        ({"images": np.zeros((4, 5, 6, 7), np.uint8)}, "with 1 or 3 channels"),
        ({"images": np.zeros((4, 5, 6, 7, 3), np.uint8)}, "with 1 or 3 channels"),
        ({"images": PIXELS, "labels": np.arange(4)}, "one for each of 5 images"),
        ({"images": PIXELS, "labels": np.arange(5.0)}, "whole numbers"),
        ({"images": np.array(["a", "b"])}, "only numbers are read"),
        ({"images": PIXELS.astype(np.complex64)}, "only numbers are read"),
        ({"images": np.array([{}, {}], dtype=object)}, "only numbers are read"),
        ({"images": np.full((4, 3, 2, 2), np.nan)}, "finite values"),
    ],
)
def test_what_is_no_set_of_images_is_refused(arrays: dict[str, Any], message: str, tmp_path: Path) -> None:
    path = saved(tmp_path, **arrays)
    with pytest.raises(DataError, match=message) as caught:
        load_evaluation(path, transform=PLAIN)
    assert str(path) in str(caught.value)


def test_a_damaged_file_is_one_error_that_names_it(tmp_path: Path) -> None:
    path = saved(tmp_path, images=PIXELS)
    sound = path.read_bytes()
    middle = len(sound) // 2
    for damaged in (b"", b"PK\x03\x04", sound[:middle], sound[:middle] + b"\0" * 40 + sound[middle + 40 :]):
        path.write_bytes(damaged)
        with pytest.raises(DataError, match="not a readable .npz file") as caught:
            load_evaluation(path, transform=PLAIN)
        assert str(path) in str(caught.value)


def test_what_unpacks_to_much_more_than_the_file_is_refused_unread(tmp_path: Path) -> None:
    path = saved(tmp_path, images=np.zeros((1, 3, 6000, 6000), np.uint8), is_compressed=True)
    assert path.stat().st_size < 1_000_000
    with pytest.raises(UnusableFileError, match="more than 100 times"):
        read_arrays(path, ("images",))
    assert read_arrays(path, ("labels",)) == {}
