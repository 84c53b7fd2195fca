from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from clcalib.data.sheet import SheetIndex, read_sheet, write_sheet
from clcalib.errors import DataError

DEMO = Path(__file__).parents[2] / "examples" / "demo"


def random_tiles(count: int, height: int = 4, width: int = 6) -> torch.Tensor:
    generator = torch.Generator().manual_seed(count)
    return torch.randint(0, 256, (count, 3, height, width), dtype=torch.uint8, generator=generator)


@given(count=st.integers(1, 40), columns=st.integers(1, 9), height=st.integers(1, 5), width=st.integers(1, 5))
def test_one_sheet_is_lossless(
    tmp_path_factory: pytest.TempPathFactory, count: int, columns: int, height: int, width: int
) -> None:
    path = tmp_path_factory.mktemp("sheet") / "images.json"
    tiles = random_tiles(count, height, width)
    index = SheetIndex(tile=(height, width), columns=columns, count=count, labels=(1,) * count, classes=("a", "b"))
    assert [file.name for file in write_sheet(path, tiles, index)] == ["images.png", "images.json"]
    for place in (path, path.with_suffix(".png")):
        read_tiles, read_index = read_sheet(place)
        assert torch.equal(read_tiles, tiles)
        assert read_index == index


def test_tiles_go_on_from_sheet_to_sheet(tmp_path: Path) -> None:
    index = SheetIndex(tile=(4, 6), columns=5, count=20, sheets=("one.png", "two.png"))
    tiles = random_tiles(20)
    write_sheet(tmp_path / "images.json", tiles, index)
    assert torch.equal(read_sheet(tmp_path / "images.json")[0], tiles)


def test_the_first_row_of_the_picture_shows_the_first_tiles(tmp_path: Path) -> None:
    from PIL import Image  # the test looks at the file, not through the package

    tiles = random_tiles(5)
    write_sheet(tmp_path / "a.json", tiles, SheetIndex(tile=(4, 6), columns=3, count=5))
    with Image.open(tmp_path / "a.png") as sheet:
        assert sheet.size == (18, 8)
        assert sheet.getpixel((6, 0)) == tuple(tiles[1, :, 0, 0].tolist())
        assert sheet.getpixel((1, 6)) == tuple(tiles[3, :, 2, 1].tolist())
        assert sheet.getpixel((17, 7)) == (0, 0, 0)


def test_writing_refuses_tiles_that_do_not_fit(tmp_path: Path) -> None:
    index = SheetIndex(tile=(4, 6), columns=5, count=20)
    with pytest.raises(DataError, match="tiles: expected uint8"):
        write_sheet(tmp_path / "a.json", random_tiles(19), index)
    with pytest.raises(DataError, match="whole rows of 5 tiles on each of 2 sheets"):
        write_sheet(
            tmp_path / "a.json", random_tiles(14), SheetIndex(tile=(4, 6), columns=5, count=14, sheets=("b", "c"))
        )
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": [0, 1]}, "labels has 2 entries for 4 tiles"),
        ({"indices": [0]}, "indices has 1 entries"),
        ({"labels": [0, 0, 0, 5], "classes": ["a"]}, "label 5 has no name"),
        ({"labels": [0, 0, 0, -1]}, "labels.3"),
        ({"sheets": ["../secret.png"]}, "not the name of a file beside"),
        ({"sheets": ["/secret.png"]}, "not the name of a file beside"),
        ({"count": 0}, "count"),
        ({"columns": "many"}, "columns"),
        ({"title": "x"}, "title: Extra inputs"),
        ({"count": 400}, "expected 400 tiles, got 4"),
        ({"tile": [3, 6]}, "rows of 2 tiles of 6 x 3 pixels"),
        ({"sheets": ["missing.png"]}, "missing.png"),
    ],
)
def test_a_wrong_description_names_the_file_and_the_place(
    tmp_path: Path, change: dict[str, object], message: str
) -> None:
    path = tmp_path / "a.json"
    write_sheet(path, random_tiles(4), SheetIndex(tile=(4, 6), columns=2, count=4))
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(DataError, match=message) as caught:
        read_sheet(path)
    assert "a.json" in str(caught.value) or ".png" in str(caught.value)


def test_an_index_is_checked_without_a_file_too() -> None:
    with pytest.raises(ValidationError, match="3 entries for 1 tiles"):
        SheetIndex(tile=(1, 1), columns=1, count=1, labels=(0, 0, 0))


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe\x00", b"[1]", b"null"])
def test_a_damaged_description_is_one_error(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(DataError, match=r"a\.json"):
        read_sheet(tmp_path / "a.json")


@pytest.mark.parametrize(("name", "count"), [("calibration.json", 1024), ("test.json", 2000)])
def test_the_embedded_images_are_there_and_balanced(name: str, count: int) -> None:
    tiles, index = read_sheet(DEMO / name)
    assert tiles.shape == (count, 3, 32, 32)
    assert len(index.classes) == 10
    assert index.labels is not None
    assert index.indices is not None
    counts = torch.bincount(torch.tensor(index.labels), minlength=10)
    assert counts.max() - counts.min() <= 1
    assert len(set(index.indices)) == count
    assert all((DEMO / sheet).stat().st_size < 4_000_000 for sheet in index.sheets or ("calibration.png",))
