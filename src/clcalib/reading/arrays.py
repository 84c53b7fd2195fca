"""The arrays of an ``.npz`` file: a zip archive of ``.npy`` members, whose sizes are checked before they are read.

``numpy.load`` is not used: it reads what a member claims to hold before anyone could look at it.
"""

from __future__ import annotations

import io
import math
import struct
import zipfile
import zlib
from collections.abc import Collection
from pathlib import Path
from typing import IO, Any

import numpy as np

from clcalib.errors import UnusableFileError
from clcalib.reading.content import check_size

MOST_BYTES = 1 << 40
# What a compressed member may become: of 100 equal bytes deflate makes one, and more is made to fill the memory.
MOST_TIMES = 100
_AND_SOME = 1 << 26
_MOST_HEADER = 1 << 16
_MOST_MEMBERS = 1000
_PART = 1 << 20
_KINDS = "buif"  # truth values, whole numbers and floats

# What a damaged archive, header or stream raises.
_DAMAGES = (
    zipfile.BadZipFile, NotImplementedError, RuntimeError, ValueError, EOFError, OSError, struct.error, zlib.error,
    TypeError, SyntaxError, MemoryError, OverflowError, KeyError,
)  # fmt: skip


def read_arrays(path: Path, names: Collection[str]) -> dict[str, np.ndarray[Any, Any]]:
    """The arrays of these names that an ``.npz`` file has; its other members are not read.

    Args:
        path: of the file.
        names: without ``.npy``.

    Raises:
        UnusableFileError: it cannot be read, is damaged, claims more than it may, or an array holds Python objects.
    """
    try:
        size = check_size(path, MOST_BYTES)
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
            if len(members) > _MOST_MEMBERS:
                raise UnusableFileError(path, f"has {len(members)} members; at most {_MOST_MEMBERS} are looked at")
            wanted = {f"{name}.npy": name for name in names}
            found = [member for member in members if member.filename in wanted]
            if len({member.filename for member in found}) != len(found):
                raise UnusableFileError(path, "has two members of one name")
            if sum(member.file_size for member in found) > MOST_TIMES * size + _AND_SOME:
                raise UnusableFileError(path, f"its members claim more than {MOST_TIMES} times the {size} bytes it has")
            return {wanted[member.filename]: _array(archive, member, path) for member in found}
    except UnusableFileError:
        raise
    except _DAMAGES as error:
        raise UnusableFileError(path, f"not a readable .npz file ({_first_line(error)})") from None


def _array(archive: zipfile.ZipFile, member: zipfile.ZipInfo, path: Path) -> np.ndarray[Any, Any]:
    with archive.open(member) as stream:
        start = stream.read(_MOST_HEADER)
        header = io.BytesIO(start)
        shape, is_fortran, dtype = _header(header)
        if dtype.kind not in _KINDS or dtype.hasobject:
            raise UnusableFileError(path, f"{member.filename} holds {dtype}, and only numbers are read")
        needed = math.prod(shape) * dtype.itemsize
        if any(side < 0 for side in shape) or needed != member.file_size - header.tell():
            claimed, held = " x ".join(map(str, shape)), member.file_size - header.tell()
            raise UnusableFileError(path, f"{member.filename} claims {claimed} of {dtype} and has {held} bytes")
        content = bytearray(needed)
        done = _fill(memoryview(content), header)
        if done + _fill(memoryview(content)[done:], stream) != needed:
            raise UnusableFileError(path, f"{member.filename} is cut off")
    values = np.frombuffer(content, dtype=dtype).reshape(shape, order="F" if is_fortran else "C")
    return values.astype(dtype.newbyteorder("="), order="C", copy=False)  # in the machine's own order of bytes


def _fill(target: memoryview, source: IO[bytes]) -> int:
    """Read as much as fits and there is; return how much."""
    done = 0
    while done < len(target):
        part = source.read(min(_PART, len(target) - done))
        if not part:
            break
        target[done : done + len(part)] = part
        done += len(part)
    return done


def _header(stream: io.BytesIO) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    version = np.lib.format.read_magic(stream)
    readers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    if version not in readers:
        raise ValueError(f"a .npy of version {version[0]}.{version[1]}")
    return readers[version](stream)


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:200] if lines else type(error).__name__
