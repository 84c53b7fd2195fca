"""Images in an ``.npz`` file: arrays ``images`` and, where they are known, ``labels``."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from clcalib.errors import DataError, UnusableFileError
from clcalib.reading.arrays import read_arrays

_CHANNELS = (1, 3)


def read_npz(path: Path) -> tuple[Tensor, Tensor | None]:
    """Images (N, C, H, W), uint8 or floating as they are, and labels (N,) int64 or None.

    Pixels of 8 bits may lie as (N, H, W, C), (N, C, H, W) or, grey, (N, H, W); C is 1 or 3.  Floats are taken as they
    are, as what the network takes.

    Raises:
        DataError: the file is damaged, has no images, or these have another type or shape.
    """
    try:
        arrays = read_arrays(path, ("images", "labels"))
    except UnusableFileError as error:
        raise DataError("path", "a readable .npz file", f"{path} ({error.reason})") from error
    if "images" not in arrays:
        raise DataError("path", "an array named images (np.savez(file, images=..., labels=...))", f"none in {path}")
    images = arrays["images"]
    if images.ndim < 2 or len(images) == 0:
        raise DataError("images", "at least one image", f"shape {images.shape} in {path}")
    if images.dtype.kind == "f":
        pixels = torch.from_numpy(images)
    elif images.dtype == np.uint8:
        pixels = torch.from_numpy(np.ascontiguousarray(_channels_first(images, path)))
    else:
        expected, remedy = "images of 8 bits (uint8), or floats", "convert them; pixels from 0 to 255 are uint8"
        raise DataError("images", expected, f"{images.dtype} in {path}", remedy)
    return pixels, _labels(arrays.get("labels"), len(images), path)


def _channels_first(images: np.ndarray, path: Path) -> np.ndarray:  # (N, ...) uint8
    if images.ndim == 3:
        return images[:, None]
    if images.ndim == 4:
        first, last = (images.shape[axis] in _CHANNELS for axis in (1, 3))
        if first and last:
            remedy = "images of 1 or 3 pixels a side could be meant either way; save them as (N, C, H, W) floats"
            raise DataError("images", "an order of axes that can be told", f"shape {images.shape} in {path}", remedy)
        if first:
            return images
        if last:
            return images.transpose(0, 3, 1, 2)
    expected = "shape (N, H, W, C), (N, C, H, W) or (N, H, W), with 1 or 3 channels"
    raise DataError("images", expected, f"{images.shape} in {path}")


def _labels(labels: np.ndarray | None, count: int, path: Path) -> Tensor | None:
    if labels is None:
        return None
    if labels.dtype.kind not in "ui":
        raise DataError("labels", "whole numbers", f"{labels.dtype} in {path}")
    if labels.shape != (count,):
        raise DataError("labels", f"one for each of {count} images", f"shape {labels.shape} in {path}")
    return torch.from_numpy(labels.astype(np.int64))
