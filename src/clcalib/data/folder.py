"""A folder of image files: which images there are, and their classes from ``labels.csv`` or from subfolders."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from clcalib.errors import DataError

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp"})
LABEL_FILE = "labels.csv"
_MOST_DIGITS = 9  # of a class number; longer ones are names


@dataclass(frozen=True)
class Listing:
    """The images of a folder in a fixed order.

    Args:
        files: their paths.
        labels: the class of each, or None.
        classes: the names of the classes in the order of their numbers; empty where only numbers are known.
    """

    files: tuple[Path, ...]
    labels: tuple[int, ...] | None
    classes: tuple[str, ...] = ()


def list_images(folder: Path) -> Listing:
    """List the PNG, JPEG, WebP and BMP files of a folder.

    With ``labels.csv`` (columns ``file`` and ``label``) its rows are the images; a label is a number or a name.
    Otherwise the files in the folder itself, unlabelled; or, if there are none, those in its subfolders, each of which
    is a class.  Classes that are names are numbered in alphabetical order.

    Raises:
        DataError: there is no image, ``labels.csv`` does not fit the files, or images lie beside subfolders of images.
    """
    if (folder / LABEL_FILE).is_file():
        return _from_table(folder)
    here = _image_files(folder)
    below = {child.name: _image_files(child) for child in sorted(folder.iterdir()) if child.is_dir()}
    below = {name: files for name, files in below.items() if files}
    if here and below:
        got = f"{len(here)} images and {len(below)} subfolders of images in {folder}"
        raise DataError("path", "images or class subfolders", got, f"move them apart, or write {LABEL_FILE}")
    if here:
        return Listing(tuple(here), None)
    if not below:
        raise DataError("path", "a folder with PNG, JPEG, WebP or BMP images", f"none in {folder}")
    labelled = [(file, label) for label, files in enumerate(below.values()) for file in files]
    return Listing(tuple(file for file, _ in labelled), tuple(label for _, label in labelled), tuple(below))


def _image_files(folder: Path) -> list[Path]:
    return sorted(child for child in folder.iterdir() if child.is_file() and child.suffix.lower() in SUFFIXES)


def _from_table(folder: Path) -> Listing:
    table = folder / LABEL_FILE
    try:
        with table.open(newline="", encoding="utf-8") as stream:
            rows = list(csv.DictReader(stream))
    except (OSError, ValueError, csv.Error) as error:
        raise DataError("path", "a readable table", f"{table} ({error})") from error
    if not rows or not {"file", "label"} <= set(rows[0]):
        raise DataError("path", "columns file and label, and a row for each image", str(table))
    files, texts = [], []
    for number, row in enumerate(rows, start=2):
        name, label = row["file"], row["label"]
        if not name or not label or not _is_inside(name) or not (folder / name).is_file():
            raise DataError(
                "path", f"a file in {folder} and its label", f"{name!r}, {label!r} in {table} line {number}"
            )
        files.append(folder / name)
        texts.append(label.strip())
    return Listing(tuple(files), *numbered(texts))


def numbered(texts: Sequence[str]) -> tuple[tuple[int, ...], tuple[str, ...]]:
    """Labels as class numbers, and the names of the classes in the order of these; none where they are numbers.

    Example:
        >>> numbered(["dog", "cat", "dog"]), numbered(["7", "3"])
        (((1, 0, 1), ('cat', 'dog')), ((7, 3), ()))
    """
    if all(text.isdecimal() and len(text) <= _MOST_DIGITS for text in texts):
        return tuple(int(text) for text in texts), ()
    classes = sorted(set(texts))
    places = {name: number for number, name in enumerate(classes)}
    return tuple(places[text] for text in texts), tuple(classes)


def _is_inside(name: str) -> bool:
    path = Path(name)
    return not path.is_absolute() and ".." not in path.parts
