"""Opening files: every way in which one can be unreadable becomes one error that names the file."""

from __future__ import annotations

import io
import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from clcalib.data.transform import Transform
from clcalib.errors import DataError

# What Pillow's decoders raise for damaged files.
_DECODING_ERRORS = (OSError, ValueError, SyntaxError, IndexError, struct.error, Image.DecompressionBombError)


def open_image(path: Path) -> Image.Image:
    """Return a fully decoded image.

    Raises:
        DataError: the file is missing, no image, or damaged.
    """
    try:
        with Image.open(path) as image:
            image.load()
            return image
    except _DECODING_ERRORS as error:
        raise DataError("path", "a readable image file", f"{path} ({error})") from error


def read_image(path: Path, transform: Transform) -> Tensor:  # -> (C, H, W) float32
    """Decode and transform one image file.

    Raises:
        DataError: it cannot be decoded, or the transform does not take it.
    """
    image = open_image(path)
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
        content: object = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError("path", "a readable JSON file", f"{path} ({error})") from error
    return content


def png(pixels: np.ndarray[Any, Any], **options: Any) -> bytes:
    """An image (H, W, 3) or (H, W) uint8 as the content of a PNG file."""
    content = io.BytesIO()
    Image.fromarray(pixels).save(content, format="PNG", **options)
    return content.getvalue()
