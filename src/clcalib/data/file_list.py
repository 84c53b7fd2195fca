"""A list of image files: a text with one path a line and, for evaluation, its label behind a tab or a comma.

```
# the validation images, in any order
val/0001.jpg, 3
val/0002.jpg, 5
```

Paths are taken from the folder of the list; empty lines and lines that begin with # are left out.  A label is a number
or a name; names are numbered in alphabetical order.
"""

from __future__ import annotations

from pathlib import Path

from clcalib.data.folder import Listing, numbered
from clcalib.errors import DataError, UnusableFileError
from clcalib.reading.content import MIB, read_bytes

SUFFIX = ".txt"
_MOST_LIST = 256 * MIB
_LONGEST_LINE = 4096


def read_file_list(path: Path) -> Listing:
    """The files of a list and their labels, where it gives some.

    Raises:
        DataError: the list cannot be read, is empty, has labels for some images only, or a line is no path.
    """
    try:
        text = read_bytes(path, _MOST_LIST).decode("utf-8-sig")
    except UnusableFileError as error:
        raise DataError("path", "a readable list of files", f"{path} ({error.reason})") from error
    except (OSError, ValueError) as error:
        raise DataError("path", "a list of files in UTF-8", f"{path} ({error})") from error
    files: list[Path] = []
    labels: list[str | None] = []
    for number, line in enumerate(text.splitlines(), start=1):
        stripped = line.strip()
        if stripped and not stripped.startswith("#"):
            file, label = _entry(stripped, path, number)
            files.append(file)
            labels.append(label)
    if not files:
        raise DataError("path", "a list with a path on each line", f"no path in {path}")
    known = [label for label in labels if label is not None]
    if len(known) not in (0, len(labels)):
        first = files[labels.index(None)]
        got = f"none for {first.name} and {len(labels) - len(known) - 1} more in {path}"
        raise DataError("labels", f"one for each of {len(labels)} images, or none at all", got)
    return Listing(tuple(files), *numbered(known)) if known else Listing(tuple(files), None)


def _entry(line: str, path: Path, number: int) -> tuple[Path, str | None]:
    if len(line) > _LONGEST_LINE or not line.replace("\t", "").isprintable():
        raise DataError("path", "the path of an image on each line", f"{line[:60]!r} in {path} line {number}")
    name, label = line, None
    if "\t" in line:
        name, _, label = line.rpartition("\t")
    elif "," in line and not (path.parent / line).is_file():  # a name may have a comma in it
        name, _, label = line.rpartition(",")
    name, label = name.strip(), None if label is None else label.strip()
    if not name or label == "":
        raise DataError("path", "a path, and behind a tab or comma its label", f"{line!r} in {path} line {number}")
    return path.parent / name, label
