"""Images of every common kind come out right; bombs are not decoded; a few bad ones in a folder are left out."""

from __future__ import annotations

import json
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from clcalib.cli import main
from clcalib.data.decode import MOST_PIXELS, open_image
from clcalib.data.sources import load_calibration, load_evaluation
from clcalib.data.transform import Transform
from clcalib.errors import DataError, UnreadableImagesWarning

PLAIN = Transform(mean=(0.0, 0.0, 0.0), standard_deviation=(1.0, 1.0, 1.0))
COLOURS = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)


def pixels(path: Path, transform: Transform = PLAIN) -> np.ndarray:  # (H, W, C)
    image = load_calibration(path.parent, transform=transform).images[0]
    return np.rint(image.permute(1, 2, 0).numpy() * 255).astype(int)


def rgb(image: Image.Image) -> np.ndarray:
    return np.asarray(image.convert("RGB")).astype(int)


def png(size: tuple[int, int], depth: int, colour: int, rows: bytes) -> bytes:
    """A PNG of raw rows, for what Pillow does not write itself."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", *size, depth, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


@pytest.mark.parametrize("suffix", [".png", ".bmp", ".webp", ".jpg"])
def test_each_format_gives_its_pixels(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"a{suffix}"
    Image.fromarray(COLOURS).save(path, **({"lossless": True} if suffix == ".webp" else {}))
    expected = COLOURS.astype(int) if suffix != ".jpg" else rgb(Image.open(path))
    np.testing.assert_array_equal(pixels(path), expected)


def test_grey_images_have_three_equal_channels(tmp_path: Path) -> None:
    Image.fromarray(COLOURS[:, :, 0]).save(tmp_path / "a.png")
    np.testing.assert_array_equal(pixels(tmp_path / "a.png"), np.repeat(COLOURS[:, :, :1], 3, axis=2))


def test_transparency_is_dropped(tmp_path: Path) -> None:
    alpha = np.full((5, 7, 1), 40, dtype=np.uint8)
    Image.fromarray(np.concatenate([COLOURS, alpha], axis=2)).save(tmp_path / "a.png")
    np.testing.assert_array_equal(pixels(tmp_path / "a.png"), COLOURS)


def test_inks_become_colours(tmp_path: Path) -> None:
    inks = np.zeros((8, 8, 4), dtype=np.uint8)
    inks[:4, :, 0], inks[:, 4:, 3] = 255, 255  # cyan above, black at the right
    Image.fromarray(inks, mode="CMYK").save(tmp_path / "a.jpg", quality=100, subsampling=0)
    found = pixels(tmp_path / "a.jpg")
    np.testing.assert_allclose(found[1, 1], [0, 255, 255], atol=6)
    np.testing.assert_allclose(found[6, 1], [255, 255, 255], atol=6)
    np.testing.assert_allclose(found[1, 6], [0, 0, 0], atol=6)


@pytest.mark.parametrize("transparency", [None, 1, b"\x00\x80\xff"])
def test_palettes_are_looked_up(tmp_path: Path, transparency: int | bytes | None) -> None:
    image = Image.fromarray(np.array([[0, 1, 2]], dtype=np.uint8), mode="P")
    image.putpalette([10, 20, 30, 40, 50, 60, 70, 80, 90])
    image.save(tmp_path / "a.png", **({} if transparency is None else {"transparency": transparency}))
    np.testing.assert_array_equal(pixels(tmp_path / "a.png"), [[[10, 20, 30], [40, 50, 60], [70, 80, 90]]])


@pytest.mark.parametrize("colour", [0, 2])
def test_16_bits_give_their_upper_8(tmp_path: Path, colour: int) -> None:
    channels = 3 if colour == 2 else 1
    values = np.random.default_rng(1).integers(0, 65536, (4, 6, channels), dtype=np.uint16)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    (tmp_path / "a.png").write_bytes(png((6, 4), 16, colour, rows))
    np.testing.assert_array_equal(pixels(tmp_path / "a.png"), np.broadcast_to(values >> 8, (4, 6, 3)))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_camera_s_note_turns_the_image_upright(tmp_path: Path, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    # What the sensor saw so that, turned as the note says, the colours are upright.
    seen = {
        1: COLOURS, 2: COLOURS[:, ::-1], 3: COLOURS[::-1, ::-1], 4: COLOURS[::-1],
        5: COLOURS.transpose(1, 0, 2), 6: np.rot90(COLOURS), 7: np.rot90(COLOURS, 2).transpose(1, 0, 2),
        8: np.rot90(COLOURS, -1),
    }[orientation]  # fmt: skip
    Image.fromarray(np.ascontiguousarray(seen)).save(tmp_path / "a.png", exif=exif)
    np.testing.assert_array_equal(pixels(tmp_path / "a.png"), COLOURS)


def test_one_pixel_and_a_line(tmp_path: Path) -> None:
    Image.new("RGB", (1, 1), (9, 8, 7)).save(tmp_path / "a.png")
    np.testing.assert_array_equal(pixels(tmp_path / "a.png"), [[[9, 8, 7]]])
    resized = pixels(tmp_path / "a.png", Transform(8, 6, PLAIN.mean, PLAIN.standard_deviation))
    np.testing.assert_array_equal(resized, np.broadcast_to([9, 8, 7], (6, 6, 3)))
    line = np.zeros((1, 20_000, 3), dtype=np.uint8)
    line[:, 10_000:] = 200
    Image.fromarray(line).save(tmp_path / "a.png")
    np.testing.assert_array_equal(pixels(tmp_path / "a.png"), line)
    # Resized as a whole it would have a billion pixels; the middle of it is dark at the left and light at the right.
    middle = pixels(tmp_path / "a.png", Transform(256, 224, PLAIN.mean, PLAIN.standard_deviation))
    assert middle.shape == (224, 224, 3)
    assert int(middle[:, 0].max()) < 30
    assert int(middle[:, -1].min()) > 170


def test_a_bomb_is_not_decoded(tmp_path: Path) -> None:
    side = 12_000  # 432 MB of pixels, in 17 KB
    stream = zlib.compressobj(9)
    row = b"\0" * (side * 3 // 8 + 1)
    content = b"".join([stream.compress(row) for _ in range(side)] + [stream.flush()])
    path = tmp_path / "bomb.png"
    path.write_bytes(png((side, side), 1, 0, b"")[:33])
    kind = b"IDAT" + content
    path.write_bytes(path.read_bytes() + struct.pack(">I", len(content)) + kind + struct.pack(">I", zlib.crc32(kind)))
    with pytest.raises(DataError, match=r"bomb\.png .*pixels"):
        open_image(path)
    Image.new("1", (100, 50)).save(path)
    assert open_image(path, 5000).size == (100, 50)
    with pytest.raises(DataError, match=r"bomb\.png \(100 x 50 pixels; at most 4999 are decoded\)"):
        open_image(path, 4999)
    assert MOST_PIXELS == 64_000_000


@pytest.mark.parametrize("suffix", ["GIF", "TIFF", "ICO", "PPM"])
def test_other_formats_are_refused_whatever_their_name(tmp_path: Path, suffix: str) -> None:
    Image.fromarray(COLOURS).save(tmp_path / "a.png", format=suffix)
    with pytest.raises(DataError, match=r"a\.png \(cannot identify"):
        open_image(tmp_path / "a.png")


def folder_of(tmp_path: Path, good: int, bad: int) -> Path:
    folder = tmp_path / "images"
    for index in range(good + bad):
        place = folder / ("cat" if index % 2 else "dog")
        place.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (index, 255 - index, 100)).save(place / f"{index:03}.png")
    for index in range(bad):
        (folder / "cat" / f"{2 * index + 1:03}.png").write_bytes(b"no image")
    return folder


def test_few_bad_images_are_left_out_and_named(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, 36, 4)
    with pytest.warns(UnreadableImagesWarning, match=r"4 of 40 .*: cat/001.png, cat/003.png, cat/005.png, cat/007.png"):
        evaluation = load_evaluation(folder, transform=PLAIN)
    assert len(evaluation) == 36
    assert evaluation.labels is not None
    assert evaluation.labels.tolist() == [0] * 16 + [1] * 20
    assert evaluation.provenance.indices == tuple(range(4, 40))
    (folder / "dog" / "000.png").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"at most 10% of 40 images .* got at least 5 in .*cat/001.png"):
        load_evaluation(folder, transform=PLAIN)


def test_a_run_with_bad_images_ends_and_records_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder_of(tmp_path, 38, 2)
    monkeypatch.chdir(tmp_path)
    code = "nn.Sequential(nn.Flatten(), nn.Linear(192, 4), nn.Linear(4, 2))"
    (tmp_path / "net.py").write_text(f"from torch import nn\ndef build():\n    return {code}\n")
    torch.manual_seed(0)
    state = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(192, 4), torch.nn.Linear(4, 2)).state_dict()
    save_file(state, tmp_path / "net.safetensors")
    arguments = ["--model", "net.py:build", "--weights", "net.safetensors", "--calibration", "images"]
    assert main(["quantize", *arguments, "--recipe", "nearest", "--out", "out", "--quiet"]) == 0
    record = json.loads((tmp_path / "out" / "run.json").read_text())
    assert record["calibration_images"] == 38
    assert any("2 of 40 images" in told and "cat/001.png, cat/003.png" in told for told in record["warnings"])
