"""Opening files: every way in which one can be unreadable becomes one error that names the file.

An image may come from anywhere.  Only four formats are tried, and its size is checked before its pixels are decoded.
"""

from __future__ import annotations

import io
import struct
import warnings
import zlib
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
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            # Of damaged notes beside the pixels, which do not matter here.
            warnings.simplefilter("ignore", UserWarning)
            with Image.open(path, formats=FORMATS) as image:
                if image.width * image.height > most_pixels:
                    raise ValueError(f"{image.width} x {image.height} pixels; at most {most_pixels} are decoded")
                _check_scans(image, path)
                image.load()
                return _upright(image)
    except UnusableFileError as error:
        raise DataError("path", "a readable image file", f"{path} ({error.reason})") from error
    except _DECODING_ERRORS as error:
        reason = f"{type(error).__name__}: {error}" if isinstance(error, Image.DecompressionBombError) else error
        raise DataError("path", "a readable image file", f"{path} ({reason})") from error


def _check_scans(image: Image.Image, path: Path) -> None:
    if image.format in ("JPEG", "MPO") and image.info.get("progressive"):
        scans = path.read_bytes().count(b"\xff\xda")
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
    image = open_image(path, most_pixels)
    try:
        return transform.image(image)
    except DataError as error:
        raise DataError("path", "an image that the transform takes", f"{path} ({error})") from error


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
