"""Reading images from wherever they are: one function for calibration, one for evaluation.

A path may be a folder of PNG, JPEG, WebP or BMP images (see ``folder``), a tile sheet (see ``sheet``), a
``.safetensors`` file with ``images`` (N, C, H, W) and perhaps ``labels`` (N,), or the folder of CIFAR-10 (see
``cifar10``).
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from clcalib.data.calibration import CalibrationSet, EvaluationSet, stack
from clcalib.data.cifar10 import CLASSES, is_cifar10_folder, read_cifar10
from clcalib.data.decode import MOST_PIXELS, read_image
from clcalib.data.folder import list_images
from clcalib.data.selection import choose
from clcalib.data.sheet import read_sheet
from clcalib.data.transform import Transform
from clcalib.errors import DataError, UnreadableImagesWarning, UnusableFileError, first_of
from clcalib.reading.state_dict import read_tensors

Indices = tuple[int, ...]

# Of the images of a folder, so many may be unreadable: they are left out and named.
MOST_BAD_SHARE = 0.1

_Split = Literal["train", "test"]


@dataclass(frozen=True)
class _Source:
    """Images that can be read by index; ``read`` also says how it changed them, and which could be read.

    Classes and images have names where the source has some.
    """

    name: str
    count: int
    labels: Tensor | None  # (count,)
    read: Callable[[Indices, Transform], tuple[Tensor, str, Indices]]
    class_names: tuple[str, ...] = ()
    image_names: tuple[str, ...] = ()


def load_calibration(
    path: str | Path,
    *,
    transform: Transform,
    count: int | None = None,
    seed: int = 0,
    at_most: int | None = None,
    most_pixels: int = MOST_PIXELS,
) -> CalibrationSet:
    """Read ``count`` images, chosen by ``seed``, for calibration; of CIFAR-10 they are training images.

    Args:
        path: a source, see above.
        transform: applied to 8-bit pixels; floating images in a ``.safetensors`` file are taken as they are.
        count: how many; None takes all of them in their order.
        seed: of the choice, see ``selection.choose``.
        at_most: without a ``count``, take this many where the source holds more.
        most_pixels: that an image file may have; a larger one is not decoded.

    Raises:
        DataError: the source is missing, damaged, holds fewer images, or the transform leaves them with mixed shapes;
            or more than a tenth of the images of a folder cannot be used.

    Warns:
        UnreadableImagesWarning: up to a tenth of them cannot; they are left out, and named.
    """
    source = _open(Path(path), "train", most_pixels)
    if count is None and at_most is not None and source.count > at_most:
        count = at_most
    indices = choose(source.count, count, seed)
    images, description, indices = source.read(indices, transform)
    with _named(path):
        return CalibrationSet.from_tensor(images, source=source.name, indices=indices, transform=description)


def load_evaluation(
    path: str | Path,
    *,
    transform: Transform,
    count: int | None = None,
    seed: int = 0,
    most_pixels: int = MOST_PIXELS,
) -> EvaluationSet:
    """Read ``count`` images and their labels, where known, for evaluation; of CIFAR-10 they are test images.

    Args, Raises and Warns are those of ``load_calibration``.
    """
    source = _open(Path(path), "test", most_pixels)
    indices = choose(source.count, count, seed)
    images, description, indices = source.read(indices, transform)
    labels = None if source.labels is None else source.labels[list(indices)]
    with _named(path):
        return EvaluationSet.from_tensor(
            images,
            labels,
            source=source.name,
            indices=indices,
            transform=description,
            class_names=source.class_names,
            image_names=[source.image_names[index] for index in indices] if source.image_names else (),
        )


@contextlib.contextmanager
def _named(path: str | Path) -> Iterator[None]:
    """Name the source in an error about its images."""
    try:
        yield
    except DataError as error:
        raise DataError("path", "images that can be used", f"{path} ({error})") from error


def _open(path: Path, split: _Split, most_pixels: int) -> _Source:
    if path.is_dir():
        return _open_cifar10(path, split) if is_cifar10_folder(path) else _open_folder(path, most_pixels)
    if not path.exists():
        raise DataError("path", "an existing file or folder of images", path)
    suffix = path.suffix.lower()
    if suffix == ".safetensors":
        return _open_safetensors(path)
    if suffix in {".json", ".png"}:
        return _open_sheet(path)
    raise DataError(
        "path", "a folder of images, a tile sheet (.json or .png) or a .safetensors file", path, "convert the images"
    )


def _open_folder(path: Path, most_pixels: int) -> _Source:
    listing = list_images(path)

    def read(indices: Indices, transform: Transform) -> tuple[Tensor, str, Indices]:
        images: dict[int, Tensor] = {}
        bad: list[tuple[Path, DataError]] = []
        for index in indices:
            try:
                images[index] = read_image(listing.files[index], transform, most_pixels)
            except DataError as error:
                bad.append((listing.files[index], error))
                if len(bad) > MOST_BAD_SHARE * len(indices):
                    raise _too_many(bad, len(indices), path) from error
        if bad:
            names = ", ".join(file.relative_to(path).as_posix() for file, _ in bad)
            warnings.warn(
                f"{path}: {len(bad)} of {len(indices)} images cannot be used and are left out: {names} "
                f"(the first: {bad[0][1]})",
                UnreadableImagesWarning,
                stacklevel=4,
            )
        stacked = stack(list(images.values()), [str(listing.files[index]) for index in images])
        return stacked, transform.describe(), tuple(images)

    labels = None if listing.labels is None else torch.tensor(listing.labels)
    names = tuple(file.relative_to(path).as_posix() for file in listing.files)
    return _Source(path.resolve().name, len(listing.files), labels, read, listing.classes, names)


def _too_many(bad: list[tuple[Path, DataError]], count: int, folder: Path) -> DataError:
    if count == 1 or len(bad) == 1:
        return bad[0][1]
    names = first_of([file.relative_to(folder).as_posix() for file, _ in bad])
    return DataError(
        "path",
        f"at most {MOST_BAD_SHARE:.0%} of {count} images that cannot be used",
        f"at least {len(bad)} in {folder}: {names} (the first: {bad[0][1]})",
        "repair them, or take them out of the folder",
    )


def _open_sheet(path: Path) -> _Source:
    tiles, index = read_sheet(path)
    labels = None if index.labels is None else torch.tensor(index.labels)
    return _from_pixels(index.source or path.name, tiles, labels, path, index.classes)


def _open_cifar10(path: Path, split: _Split) -> _Source:
    images, labels = read_cifar10(path, split)
    return _from_pixels(f"CIFAR-10 {split}", images, labels, path, CLASSES)


def _open_safetensors(path: Path) -> _Source:
    try:
        content = read_tensors(path)
    except UnusableFileError as error:
        raise DataError("path", "a readable .safetensors file", f"{path} ({error.reason})") from error
    if "images" not in content:
        raise DataError("path", "a tensor named images", f"{', '.join(sorted(content)) or 'nothing'} in {path}")
    images, labels = content["images"], content.get("labels")
    if labels is not None and labels.shape != images.shape[:1]:
        raise DataError(
            "labels", f"one for each of {tuple(images.shape[:1])} images", f"{tuple(labels.shape)} in {path}"
        )
    if images.ndim == 0 or len(images) == 0:
        raise DataError("images", "at least one image", f"shape {tuple(images.shape)} in {path}")
    if not images.is_floating_point():
        return _from_pixels(path.name, images, labels, path)
    return _Source(path.name, len(images), labels, lambda indices, _: (images[list(indices)], "none", indices))


def _from_pixels(  # images (N, C, H, W) uint8
    name: str, images: Tensor, labels: Tensor | None, path: Path, class_names: tuple[str, ...] = ()
) -> _Source:
    def read(indices: Indices, transform: Transform) -> tuple[Tensor, str, Indices]:
        try:
            return transform.batch(images[list(indices)]), transform.describe(), indices
        except DataError as error:
            raise DataError("path", "images that the transform takes", f"{path} ({error})") from error

    return _Source(name, len(images), labels, read, class_names)
