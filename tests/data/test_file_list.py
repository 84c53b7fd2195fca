"""Lists of image files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from clcalib.data import Transform, load_calibration, load_evaluation
from clcalib.data.file_list import read_file_list
from clcalib.errors import DataError, UnreadableImagesWarning

TRANSFORM = Transform(mean=(0.0, 0.0, 0.0), standard_deviation=(1.0, 1.0, 1.0))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Images whose pixels are all their number."""
    (tmp_path / "deep").mkdir()
    for number, name in enumerate(("a.png", "b, with a comma.png", "deep/c.png", "d.png")):
        Image.fromarray(np.full((4, 4, 3), number, np.uint8)).save(tmp_path / name)
    return tmp_path


def written(folder: Path, text: str) -> Path:
    path = folder / "list.txt"
    path.write_text(text, encoding="utf-8")
    return path


def test_paths_are_taken_from_the_folder_of_the_list_in_its_order(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = written(folder, f"# comment\n\n d.png \nb, with a comma.png\r\ndeep/c.png\n{folder / 'a.png'}\n")
    monkeypatch.chdir("/")
    found = load_calibration(path, transform=TRANSFORM)
    assert (found.images[:, 0, 0, 0] * 255).round().tolist() == [3, 1, 2, 0]
    assert found.provenance.source == "list.txt"
    assert load_evaluation(path, transform=TRANSFORM).labels is None


@pytest.mark.parametrize(
    ("text", "labels"),
    [
        ("a.png, 7\nd.png,0\n", [7, 0]),
        ("a.png\t7\nb, with a comma.png\t12\n", [7, 12]),
        ("a.png,dog\nd.png , cat\ndeep/c.png,dog", [1, 0, 1]),
        ("\ufeffa.png\t1\n", [1]),
    ],
)
def test_labels_stand_behind_a_tab_or_a_comma(text: str, labels: list[int], folder: Path) -> None:
    found = load_evaluation(written(folder, text), transform=TRANSFORM).labels
    assert found is not None
    assert found.tolist() == labels


def test_names_of_classes_are_kept(folder: Path) -> None:
    assert read_file_list(written(folder, "a.png,dog\nd.png,cat\n")).classes == ("cat", "dog")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no path in"),
        ("# nothing\n\n", "no path in"),
        ("a.png, 1\nd.png\n", "none for d.png and 0 more"),
        ("a.png,\n", "a path, and behind a tab or comma its label"),
        ("\t3\n,3\n", "the path of an image|a path, and behind"),
        ("a\x00.png\n", "the path of an image on each line"),
        ("x" * 5000, "the path of an image on each line"),
        ("missing.png\n", "missing.png"),
    ],
)
def test_a_list_that_cannot_be_used_is_one_error_that_names_it(text: str, message: str, folder: Path) -> None:
    path = written(folder, text)
    with pytest.raises(DataError, match=message) as caught:
        load_evaluation(path, transform=TRANSFORM)
    assert str(path) in str(caught.value)


def test_bytes_that_are_no_text_are_refused(folder: Path) -> None:
    (folder / "list.txt").write_bytes(b"a.png\n\xff\xfe\n")
    with pytest.raises(DataError, match="in UTF-8"):
        load_evaluation(folder / "list.txt", transform=TRANSFORM)


def test_a_few_files_that_cannot_be_read_are_left_out_as_in_a_folder(folder: Path) -> None:
    (folder / "broken.png").write_bytes(b"no image")
    text = "broken.png,1\n" + "a.png,0\nd.png,1\n" * 6
    with pytest.warns(UnreadableImagesWarning, match=r"1 of 13 images .* left out: broken.png"):
        found = load_evaluation(written(folder, text), transform=TRANSFORM)
    assert found.labels is not None
    assert found.labels.tolist() == [0, 1] * 6
    with pytest.raises(DataError, match="broken.png"):
        load_evaluation(written(folder, "broken.png\nmissing.png\na.png\n"), transform=TRANSFORM)


def test_the_cap_on_pixels_holds_here_too(folder: Path) -> None:
    with pytest.raises(DataError, match="4 x 4 pixels; at most 15"):
        load_calibration(written(folder, "a.png\n"), transform=TRANSFORM, most_pixels=15)
