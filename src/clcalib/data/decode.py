"""Opening files: every way in which one can be unreadable becomes one error that names the file.

An image may come from anywhere.  Only four formats are tried, and its size is checked before its pixels are decoded.
"""

from __future__ import annotations

import io
import struct
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from clcalib.data.transform import Transform
from clcalib.errors import DataError, UnusableFileError
from clcalib.reading.content import MIB, check_size
from clcalib.reading.content import read_json as read_json_file

FORMATS = ("JPEG", "PNG", "WEBP", "BMP")
# Decoding takes 4 bytes for a pixel, so 256 MB; Pillow itself gives up at 89 million.
MOST_PIXELS = 64_000_000
_MOST_FILE = 512 * MIB
_MOST_SCANS = 200  # of a progressive JPEG; encoders write about 10, and each one costs as much as decoding it all

_ORIENTATION = 0x0112  # of Exif
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

# What Pillow's decoders raise for damaged files.
_DECODING_ERRORS = (
    OSError, ValueError, SyntaxError, IndexError, KeyError, TypeError, OverflowError, ZeroDivisionError, RuntimeError,
    EOFError, MemoryError, AttributeError, struct.error, zlib.error, Image.DecompressionBombError,
    Image.DecompressionBombWarning,
)  # fmt: skip


def open_image(path: Path, most_pixels: int = MOST_PIXELS) -> Image.Image:
    """Return a fully decoded image, turned upright where its camera noted that it is not.

    Args:
        path: of a JPEG, PNG, WebP or BMP file, whatever its suffix.
        most_pixels: that the image may have.

    Raises:
        DataError: the file is missing, no such image, damaged, or of more pixels.
    """
    try:
        check_size(path, _MOST_FILE)
        return _decoded(path, path.read_bytes, most_pixels)
    except UnusableFileError as error:
        raise DataError("path", "a readable image file", f"{path} ({error.reason})") from error
    except _DECODING_ERRORS as error:
        raise _unreadable(error, str(path)) from error


def decode_image(content: bytes, name: str, transform: Transform, most_pixels: int = MOST_PIXELS) -> Tensor:
    """Decode and transform the bytes of an image file, as ``read_image`` does those of a file.

    Args:
        content: of the file.
        name: what errors call it.
        transform: what is done to the pixels.
        most_pixels: that the image may have.

    Raises:
        DataError: it cannot be decoded, or the transform does not take it.
    """
    if len(content) > _MOST_FILE:
        raise DataError("path", "a readable image file", f"{name} (has {len(content)} bytes)")
    try:
        image = _decoded(io.BytesIO(content), lambda: content, most_pixels)
    except _DECODING_ERRORS as error:
        raise _unreadable(error, name) from error
    return _transformed(image, name, transform)


def _decoded(source: Path | io.BytesIO, read: Callable[[], bytes], most_pixels: int) -> Image.Image:
    with warnings.catch_warnings():
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        # Of damaged notes beside the pixels, which do not matter here.
        warnings.simplefilter("ignore", UserWarning)
        with Image.open(source, formats=FORMATS) as image:
            if image.width * image.height > most_pixels:
                raise ValueError(f"{image.width} x {image.height} pixels; at most {most_pixels} are decoded")
            _check_scans(image, read)
            image.load()
            return _upright(image)


def _unreadable(error: Exception, name: str) -> DataError:
    reason = f"{type(error).__name__}: {error}" if isinstance(error, Image.DecompressionBombError) else error
    return DataError("path", "a readable image file", f"{name} ({reason})")


def _check_scans(image: Image.Image, read: Callable[[], bytes]) -> None:
    if image.format in ("JPEG", "MPO") and image.info.get("progressive"):
        scans = read().count(b"\xff\xda")
        if scans > _MOST_SCANS:
            raise ValueError(f"{scans} scans; at most {_MOST_SCANS} are decoded")


def _upright(image: Image.Image) -> Image.Image:
    try:
        turn = _TURNS.get(image.getexif().get(_ORIENTATION, 1))
    except _DECODING_ERRORS:  # the note is damaged, and the pixels are not
        return image
    return image if turn is None else image.transpose(turn)


def read_image(path: Path, transform: Transform, most_pixels: int = MOST_PIXELS) -> Tensor:  # -> (C, H, W) float32
    """Decode and transform one image file; ``most_pixels`` is what it may have.

    Raises:
        DataError: it cannot be decoded, or the transform does not take it.
    """
    return _transformed(open_image(path, most_pixels), str(path), transform)


def _transformed(image: Image.Image, name: str, transform: Transform) -> Tensor:
    try:
        return transform.image(image)
    except DataError as error:
        raise DataError("path", "an image that the transform takes", f"{name} ({error})") from error


def read_rgb(path: Path) -> Tensor:  # -> (H, W, 3) uint8
    """Return the pixels of an RGB file as they are.

    Raises:
        DataError: it cannot be decoded, or is not RGB.
    """
    image = open_image(path)
    if image.mode != "RGB":
        raise DataError("path", "an RGB image", f"{path} of mode {image.mode}")
    return torch.from_numpy(np.array(image))


def read_json(path: Path) -> object:
    """Return what a JSON file holds.

    Raises:
        DataError: it is missing or holds no JSON.
    """
    try:
        return read_json_file(path)
    except UnusableFileError as error:
        raise DataError("path", "a readable JSON file", f"{path} ({error.reason})") from error
    except OSError as error:
        raise DataError("path", "a readable JSON file", f"{path} ({error})") from error


def png(pixels: np.ndarray[Any, Any], **options: Any) -> bytes:
    """An image (H, W, 3) or (H, W) uint8 as the content of a PNG file."""
    content = io.BytesIO()
    Image.fromarray(pixels).save(content, format="PNG", **options)
    return content.getvalue()
