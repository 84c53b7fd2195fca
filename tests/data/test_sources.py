from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from clcalib.data.cifar10 import write_split
from clcalib.data.sheet import SheetIndex, write_sheet
from clcalib.data.sources import load_calibration, load_evaluation
from clcalib.data.transform import Transform
from clcalib.errors import DataError

PLAIN = Transform(mean=(0.0, 0.0, 0.0), standard_deviation=(1.0, 1.0, 1.0))


def save(path: Path, value: int, size: tuple[int, int] = (6, 5)) -> None:
    """Write a picture of width 6 and height 5 that is ``value`` everywhere."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (value, value, value)).save(path)


def values(images: torch.Tensor) -> list[int]:
    return [round(float(image.mean()) * 255) for image in images]


def test_a_flat_folder_in_the_order_of_its_names(tmp_path: Path) -> None:
    for name, value in (("b.PNG", 2), ("a.png", 1), ("c.jpg", 3)):
        save(tmp_path / name, value)
    (tmp_path / "notes.txt").write_text("no image")
    calibration = load_calibration(tmp_path, transform=PLAIN)
    assert calibration.images.shape == (3, 3, 5, 6)
    assert values(calibration.images) == [1, 2, 3]
    assert calibration.provenance.source == tmp_path.name
    assert calibration.provenance.indices == (0, 1, 2)
    assert calibration.provenance.transform == PLAIN.describe()
    assert load_evaluation(tmp_path, transform=PLAIN).labels is None


def test_subfolders_are_classes(tmp_path: Path) -> None:
    for folder, value in (("dog", 20), ("cat", 10)):
        save(tmp_path / folder / "0.png", value)
        save(tmp_path / folder / "1.png", value + 1)
    (tmp_path / "empty").mkdir()
    evaluation = load_evaluation(tmp_path, transform=PLAIN)
    assert values(evaluation.images) == [10, 11, 20, 21]
    assert evaluation.labels is not None
    assert evaluation.labels.tolist() == [0, 0, 1, 1]


@pytest.mark.parametrize(("labels", "expected"), [(("7", "3"), [7, 3]), (("dog", "cat"), [1, 0])])
def test_a_table_of_labels(tmp_path: Path, labels: tuple[str, str], expected: list[int]) -> None:
    save(tmp_path / "x.png", 5)
    save(tmp_path / "deep" / "y.png", 6)
    (tmp_path / "labels.csv").write_text(f"label,file\n{labels[0]},deep/y.png\n{labels[1]},x.png\n")
    evaluation = load_evaluation(tmp_path, transform=PLAIN)
    assert values(evaluation.images) == [6, 5]
    assert evaluation.labels is not None
    assert evaluation.labels.tolist() == expected


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("", "columns file and label"),
        ("file,class\nx.png,1\n", "columns file and label"),
        ("file,label\nx.png,1\ny.png,2\n", "'y.png', '2' in .*labels.csv line 3"),
        ("file,label\n../x.png,1\n", "line 2"),
        ("file,label\nx.png\n", "'x.png', None"),
    ],
)
def test_a_table_that_does_not_fit_is_one_error(tmp_path: Path, table: str, message: str) -> None:
    save(tmp_path / "x.png", 5)
    (tmp_path / "labels.csv").write_text(table)
    with pytest.raises(DataError, match=message):
        load_evaluation(tmp_path, transform=PLAIN)


def test_count_and_seed_choose_the_same_images_again(tmp_path: Path) -> None:
    for value in range(20):
        save(tmp_path / f"{value:02}.png", value)
    state = torch.get_rng_state()
    first = load_calibration(tmp_path, transform=PLAIN, count=6, seed=1)
    again = load_calibration(tmp_path, transform=PLAIN, count=6, seed=1)
    other = load_calibration(tmp_path, transform=PLAIN, count=6, seed=2)
    assert tuple(values(first.images)) == first.provenance.indices
    assert first.provenance == again.provenance
    assert other.provenance.digest != first.provenance.digest
    assert torch.equal(torch.get_rng_state(), state)
    with pytest.raises(DataError, match="count: expected from 1 to 20"):
        load_calibration(tmp_path, transform=PLAIN, count=21)


def test_mixed_shapes_name_the_first_odd_file(tmp_path: Path) -> None:
    save(tmp_path / "a.png", 1)
    save(tmp_path / "b.png", 2, size=(7, 5))
    with pytest.raises(DataError, match=r"a.png has, got \(3, 5, 7\) \(.*b.png\); set resize and crop"):
        load_calibration(tmp_path, transform=PLAIN)
    assert load_calibration(tmp_path, transform=Transform(resize=5, crop=5)).images.shape == (2, 3, 5, 5)


@pytest.mark.parametrize("content", [b"", b"not an image", b"\x89PNG\r\n\x1a\n" + b"\0" * 40])
def test_a_file_that_is_no_image_is_named(tmp_path: Path, content: bytes) -> None:
    save(tmp_path / "a.png", 1)
    (tmp_path / "broken.png").write_bytes(content)
    with pytest.raises(DataError, match=r"broken\.png"):
        load_calibration(tmp_path, transform=PLAIN)


def test_a_cut_off_image_is_named(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    for name in ("cut.png", "cut.jpg"):
        Image.fromarray(pixels).save(tmp_path / name)
        content = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(content[: len(content) // 2])
        with pytest.raises(DataError, match=name.replace(".", r"\.")):
            load_calibration(tmp_path, transform=PLAIN)
        (tmp_path / name).unlink()


def test_an_image_that_the_transform_refuses_is_named(tmp_path: Path) -> None:
    save(tmp_path / "small.png", 1)
    with pytest.raises(DataError, match=r"small\.png \(crop: expected at most the image"):
        load_calibration(tmp_path, transform=Transform(crop=100))


def test_folders_without_a_clear_meaning_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="a folder with PNG, JPEG, WebP or BMP images"):
        load_calibration(tmp_path, transform=PLAIN)
    save(tmp_path / "a.png", 1)
    save(tmp_path / "cat" / "b.png", 2)
    with pytest.raises(DataError, match="1 images and 1 subfolders of images"):
        load_calibration(tmp_path, transform=PLAIN)


def test_a_tile_sheet_with_its_labels(tmp_path: Path) -> None:
    tiles = torch.arange(4, dtype=torch.uint8).view(4, 1, 1, 1).expand(4, 3, 5, 5).contiguous()
    index = SheetIndex(tile=(5, 5), columns=2, count=4, labels=(3, 2, 1, 0), source="numbers")
    write_sheet(tmp_path / "a.json", tiles, index)
    evaluation = load_evaluation(tmp_path / "a.png", transform=PLAIN, count=3)
    assert evaluation.labels is not None
    assert [3 - value for value in values(evaluation.images)] == evaluation.labels.tolist()
    assert evaluation.provenance.source == "numbers"
    assert tuple(values(load_calibration(tmp_path / "a.json", transform=PLAIN).images)) == (0, 1, 2, 3)


def test_safetensors_with_pixels_and_with_finished_images(tmp_path: Path) -> None:
    pixels = torch.arange(2, dtype=torch.uint8).view(2, 1, 1, 1).expand(2, 3, 4, 4).contiguous()
    labels = torch.tensor([1, 0], dtype=torch.int32)
    save_file({"images": pixels, "labels": labels}, tmp_path / "pixels.safetensors")
    evaluation = load_evaluation(tmp_path / "pixels.safetensors", transform=PLAIN)
    assert values(evaluation.images) == [0, 1]
    assert evaluation.labels is not None
    assert evaluation.labels.tolist() == [1, 0]
    finished = torch.randn(3, 2, 7)
    save_file({"images": finished}, tmp_path / "finished.safetensors")
    calibration = load_calibration(tmp_path / "finished.safetensors", transform=PLAIN)
    assert torch.equal(calibration.images, finished)
    assert calibration.provenance.transform == "none"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"pictures": torch.zeros(2, 3)}, "a tensor named images, got pictures"),
        ({"images": torch.zeros(0, 3)}, "at least one image"),
        ({"images": torch.zeros(2, 3), "labels": torch.zeros(3)}, "labels: expected one for each"),
        ({"images": torch.zeros(2, 1, 4, 4, dtype=torch.uint8)}, r"uint8 pixels \(N, 3, H, W\)"),
        ({"images": torch.full((2, 3), float("nan"))}, "NaN or infinity in 2 of 2 images, first image 0"),
    ],
)
def test_safetensors_of_another_kind_are_refused(
    tmp_path: Path, content: dict[str, torch.Tensor], message: str
) -> None:
    save_file(content, tmp_path / "a.safetensors")
    with pytest.raises(DataError, match=message):
        load_evaluation(tmp_path / "a.safetensors", transform=PLAIN)


def test_the_cifar10_folder_gives_training_images_for_calibration_and_test_images_for_evaluation(
    tmp_path: Path,
) -> None:
    train = torch.full((10, 3, 32, 32), 7, dtype=torch.uint8)
    test = torch.full((4, 3, 32, 32), 9, dtype=torch.uint8)
    write_split(tmp_path, "train", train, [1] * 10)
    write_split(tmp_path, "test", test, [0, 1, 2, 9])
    calibration = load_calibration(tmp_path, transform=PLAIN, count=6)
    evaluation = load_evaluation(tmp_path, transform=PLAIN)
    assert values(calibration.images) == [7] * 6
    assert values(evaluation.images) == [9] * 4
    assert evaluation.labels is not None
    assert evaluation.labels.tolist() == [0, 1, 2, 9]
    assert calibration.provenance.source == "CIFAR-10 train"


@pytest.mark.parametrize("name", ["missing", "missing.png", "a.bin", "empty.safetensors"])
def test_a_path_that_is_no_source_is_named(tmp_path: Path, name: str) -> None:
    for file in ("a.bin", "empty.safetensors"):
        (tmp_path / file).touch()
    with pytest.raises(DataError, match=name):
        load_calibration(tmp_path / name, transform=PLAIN)
