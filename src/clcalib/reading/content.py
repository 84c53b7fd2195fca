"""Bytes and JSON of a file, of a limited size and depth."""

from __future__ import annotations

import json
from pathlib import Path

from clcalib.errors import UnusableFileError

MIB = 1 << 20
# A list of empty lists takes 20 times the memory of its text, so that of 4 MiB takes 90 MB.
MOST_JSON = 4 * MIB
MOST_TOML = MIB // 4
MOST_LEVELS = 64


def read_bytes(path: Path, most: int) -> bytes:
    """What a plain file holds.

    Args:
        path: of the file.
        most: bytes.

    Raises:
        FileNotFoundError: there is no such file.
        OSError: it cannot be read.
        UnusableFileError: it is no plain file, such as a pipe, or is longer.
    """
    size = check_size(path, most)
    with path.open("rb") as stream:
        content = stream.read(size + 1)
    if len(content) != size:
        raise UnusableFileError(path, "changes while it is read")
    return content


def check_size(path: Path, most: int) -> int:
    """The bytes of a plain file.

    Raises:
        FileNotFoundError: there is no such file.
        OSError: it cannot be asked.
        UnusableFileError: it is no plain file, or is longer than ``most``.
    """
    status = path.stat()
    if not path.is_file():
        raise UnusableFileError(path, "is no plain file")
    if status.st_size > most:
        raise UnusableFileError(path, f"has {status.st_size} bytes; at most {most} are read of such a file")
    return status.st_size


def read_json(path: Path, most: int = MOST_JSON) -> object:
    """What a JSON file holds; NaN and infinities, which are no JSON, are passed on for the caller to refuse.

    Raises:
        FileNotFoundError: there is no such file.
        OSError: it cannot be read.
        UnusableFileError: it is no JSON, too long, or nested deeper than ``MOST_LEVELS``.
    """
    content = read_bytes(path, most)
    try:
        value: object = json.loads(content)
    except RecursionError:
        raise UnusableFileError(path, f"is nested deeper than {MOST_LEVELS} levels") from None
    except ValueError as error:  # of its syntax, its encoding, or a number of too many digits
        raise UnusableFileError(path, f"not a JSON file ({error})") from None
    check_depth(value, path)
    return value


def check_depth(value: object, path: str | Path) -> None:
    """Raise UnusableFileError where lists and tables lie in each other more than ``MOST_LEVELS`` deep."""
    layer = [value]
    for _ in range(MOST_LEVELS + 1):
        layer = [
            child
            for parent in layer
            if isinstance(parent, dict | list)
            for child in (parent.values() if isinstance(parent, dict) else parent)
        ]
        if not layer:
            return
    raise UnusableFileError(path, f"is nested deeper than {MOST_LEVELS} levels")
