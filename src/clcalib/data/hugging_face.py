"""Images of a data set of the package ``datasets``: one of a hub, ``hf:NAME``, or a folder of ``save_to_disk``.

A data set of a hub is downloaded, as whoever writes ``hf:NAME`` asks for; ``hf:NAME@SPLIT`` says which part of it is
meant.  Its images are decoded as all others are, never by the package itself, and no code of a data set is run.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from clcalib.errors import DataError, MissingPackageError

PREFIX = "hf:"
# What stands in a folder of ``save_to_disk``: of one part, or of several.
_OF_ONE, _OF_SEVERAL = ("state.json", "dataset_info.json"), "dataset_dict.json"
_SPLITS = {"train": ("train", "training"), "test": ("test", "validation", "valid", "val")}
_LABELS = ("label", "labels", "fine_label", "class", "target")

Split = Literal["train", "test"]


@dataclass(frozen=True)
class Dataset:
    """One part of a data set.

    Attributes:
        name: of the data set and its part.
        count: of its images.
        labels: (N,) int64, or None.
        class_names: of the labels 0, 1, ..., where it has them.
        encoded: the bytes of the file of one image, and what to call it.
    """

    name: str
    count: int
    labels: Tensor | None
    class_names: tuple[str, ...]
    encoded: Callable[[int], tuple[bytes, str]]


def is_saved_dataset(folder: Path) -> bool:
    """Whether a folder is one of ``save_to_disk``."""
    return (folder / _OF_SEVERAL).is_file() or all((folder / name).is_file() for name in _OF_ONE)


def open_dataset(source: str, split: Split) -> Dataset:
    """Open a data set.

    Args:
        source: ``hf:NAME``, ``hf:NAME@SPLIT``, or the path of a folder of ``save_to_disk``.
        split: which part is taken where the source names none.

    Raises:
        MissingPackageError: the package ``datasets`` is not installed.
        DataError: there is no such data set or part, it cannot be read, or it has no images.
    """
    package = _package(source)
    name, _, asked = source.removeprefix(PREFIX).partition("@") if source.startswith(PREFIX) else (source, "", "")
    if not name:
        raise DataError("path", f"{PREFIX}NAME or {PREFIX}NAME@SPLIT", repr(source))
    try:
        if source.startswith(PREFIX):
            found = package.load_dataset(name, split=asked or None)
        else:
            found = package.load_from_disk(name)
    except Exception as error:  # whatever the package and the hub raise
        lines = str(error).strip().splitlines()
        got = f"{source} ({type(error).__name__}: {lines[0][:200] if lines else ''})"
        remedy = "where the hub cannot be reached, bring the folder of save_to_disk from another machine"
        remedy = remedy if source.startswith(PREFIX) else "save it again with save_to_disk"
        raise DataError("path", "a data set that can be opened", got, remedy) from error
    if isinstance(found, dict):
        part = _part(found, split, source)
        found, name = found[part], f"{name}@{part}"
    elif asked:
        name = f"{name}@{asked}"
    return _of(package, found, name, source)


def _of(package: Any, table: Any, name: str, source: str) -> Dataset:
    kinds = table.features
    column = next((key for key, kind in kinds.items() if isinstance(kind, package.Image)), None)
    if column is None:
        raise DataError("path", "a data set with a column of images", f"columns {', '.join(kinds)} in {source}")
    if len(table) == 0:
        raise DataError("path", "a data set with images", f"none in {source}")
    labelled = [key for key, kind in kinds.items() if isinstance(kind, package.ClassLabel)]
    labelled += [key for key in _LABELS if key in kinds and str(getattr(kinds[key], "dtype", "")).startswith("int")]
    labels = None if not labelled else _labels(table[labelled[0]][:], labelled[0], source)
    names = () if labels is None else tuple(getattr(kinds[labelled[0]], "names", None) or ())
    plain = table.select_columns([column]).cast_column(column, package.Image(decode=False))

    def encoded(index: int) -> tuple[bytes, str]:
        called = f"image {index} of {source}"
        entry = plain[index][column] or {}
        content, path = entry.get("bytes"), entry.get("path")
        if content is None and path and Path(path).is_file():
            content = Path(path).read_bytes()
        if content is None:
            raise DataError("path", "an image in each row", f"none as {called}")
        return content, called

    return Dataset(Path(name).name or name, len(table), labels, names, encoded)


def _labels(values: Sequence[int | None], column: str, source: str) -> Tensor | None:
    """None where the labels are kept secret, as those of many test sets are: all of them -1."""
    if any(value is None for value in values):
        raise DataError("labels", "one for each image", f"none for some in column {column} of {source}")
    labels = torch.tensor(values, dtype=torch.int64)
    return None if bool((labels < 0).all()) else labels


def _part(found: dict[str, Any], split: Split, source: str) -> str:
    part = next((name for name in _SPLITS[split] if name in found), None)
    if part is None:
        remedy = (
            f"name one: {PREFIX}NAME@{next(iter(found), 'SPLIT')}" if source.startswith(PREFIX) else "save one alone"
        )
        raise DataError(
            "path", f"a part called {' or '.join(_SPLITS[split])}", f"{', '.join(found)} in {source}", remedy
        )
    return part


def _package(source: str) -> Any:
    try:
        import datasets
    except ImportError as error:
        raise MissingPackageError(
            f"{source} is a data set of the package datasets, which cannot be imported ({error}): "
            "pip install 'clcalib[datasets]'"
        ) from error
    return datasets
