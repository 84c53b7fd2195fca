"""Reading images from wherever they are: one function for calibration, one for evaluation.

A path may be a folder of PNG, JPEG, WebP or BMP images (see ``folder``), a ``.txt`` list of such files (see
``file_list``), a tile sheet (see ``sheet``), a ``.safetensors`` file with ``images`` (N, C, H, W) and perhaps
``labels`` (N,), an ``.npz`` file with the same (see ``arrays``), the folder of CIFAR-10 (see ``cifar10``), or a data
set of the package ``datasets``, ``hf:NAME`` or a folder (see ``hugging_face``).
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

from clcalib.data.arrays import read_npz
from clcalib.data.calibration import CalibrationSet, EvaluationSet, stack
from clcalib.data.cifar10 import CLASSES, is_cifar10_folder, read_cifar10
from clcalib.data.decode import MOST_PIXELS, decode_image, read_image
from clcalib.data.file_list import SUFFIX as LIST
from clcalib.data.file_list import read_file_list
from clcalib.data.folder import Listing, list_images
from clcalib.data.hugging_face import PREFIX, is_saved_dataset, open_dataset
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
    source = _open(path, "train", most_pixels)
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
    source = _open(path, "test", most_pixels)
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


def _open(place: str | Path, split: _Split, most_pixels: int) -> _Source:
    path = Path(place)
    if str(place).startswith(PREFIX) or (path.is_dir() and is_saved_dataset(path)):
        return _open_dataset(str(place), split, most_pixels)
    if path.is_dir():
        return (
            _open_cifar10(path, split) if is_cifar10_folder(path) else _open_files(list_images(path), path, most_pixels)
        )
    if not path.exists():
        raise DataError("path", "an existing file or folder of images", path)
    suffix = path.suffix.lower()
    if suffix in _READERS:
        return _READERS[suffix](path)
    if suffix == LIST:
        return _open_files(read_file_list(path), path, most_pixels)
    expected = "a folder of images, a .txt list of files, a tile sheet (.json or .png), a .safetensors or an .npz file"
    raise DataError("path", expected, path, "convert the images")


def _open_files(listing: Listing, path: Path, most_pixels: int) -> _Source:
    root = path if path.is_dir() else path.parent
    names = tuple(
        file.relative_to(root).as_posix() if file.is_relative_to(root) else str(file) for file in listing.files
    )

    def one(index: int, transform: Transform) -> Tensor:
        try:
            return read_image(listing.files[index], transform, most_pixels)
        except DataError as error:
            if path.is_dir():
                raise
            raise DataError("path", "images that can be read", f"line of {path}: {error}") from error

    labels = None if listing.labels is None else torch.tensor(listing.labels)
    read = _one_by_one(one, names.__getitem__, path)
    return _Source(path.resolve().name, len(listing.files), labels, read, listing.classes, names)


def _open_dataset(source: str, split: _Split, most_pixels: int) -> _Source:
    found = open_dataset(source, split)

    def one(index: int, transform: Transform) -> Tensor:
        return decode_image(*found.encoded(index), transform, most_pixels)

    read = _one_by_one(one, lambda index: f"image {index}", source)
    return _Source(found.name, found.count, found.labels, read, found.class_names)


def _one_by_one(
    one: Callable[[int, Transform], Tensor], name: Callable[[int], str], source: str | Path
) -> Callable[[Indices, Transform], tuple[Tensor, str, Indices]]:
    """Read encoded images each for itself; a few that cannot be used are left out."""

    def read(indices: Indices, transform: Transform) -> tuple[Tensor, str, Indices]:
        images: dict[int, Tensor] = {}
        bad: list[tuple[str, DataError]] = []
        for index in indices:
            try:
                images[index] = one(index, transform)
            except DataError as error:
                bad.append((name(index), error))
                if len(bad) > MOST_BAD_SHARE * len(indices):
                    raise _too_many(bad, len(indices), source) from error
        if bad:
            names = ", ".join(file for file, _ in bad)
            warnings.warn(
                f"{source}: {len(bad)} of {len(indices)} images cannot be used and are left out: {names} "
                f"(the first: {bad[0][1]})",
                UnreadableImagesWarning,
                stacklevel=4,
            )
        return stack(list(images.values()), [name(index) for index in images]), transform.describe(), tuple(images)

    return read


def _too_many(bad: list[tuple[str, DataError]], count: int, source: str | Path) -> DataError:
    if count == 1 or len(bad) == 1:
        return bad[0][1]
    names = first_of([name for name, _ in bad])
    return DataError(
        "path",
        f"at most {MOST_BAD_SHARE:.0%} of {count} images that cannot be used",
        f"at least {len(bad)} in {source}: {names} (the first: {bad[0][1]})",
        "repair them, or take them out",
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
    return _from_tensor(images, labels, path)


def _open_npz(path: Path) -> _Source:
    return _from_tensor(*read_npz(path), path)


def _from_tensor(images: Tensor, labels: Tensor | None, path: Path) -> _Source:
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


_READERS = {".safetensors": _open_safetensors, ".npz": _open_npz, ".json": _open_sheet, ".png": _open_sheet}
