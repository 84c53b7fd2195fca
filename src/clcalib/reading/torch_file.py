"""Files of ``torch.save``, of both its formats, with all sizes checked before ``torch.load(weights_only=True)``."""

from __future__ import annotations

import io
import mmap
import re
import struct
import warnings
import zipfile
from pathlib import Path

import torch

from clcalib.errors import UnusableFileError
from clcalib.reading.content import MIB
from clcalib.reading.pickled import NoStateDictError, check_pickle

ZIP_START = b"PK\x03\x04"
# The first pickle of the old format is a number that says what the file is.
_LEGACY_START = re.compile(rb"\x80[\x02-\x05](\x95.{8})?\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19\.", re.DOTALL)
_LEGACY_PICKLES = 5  # the number, a version, sizes of types, the object, the keys of its storages
_MOST_PICKLE = 4 * MIB
_MOST_DIRECTORY = 2 * MIB
_RECORD = re.compile(r"[^/\\]+/(data\.pkl|byteorder|version|\.format_version|\.storage_alignment|"
                     r"\.data/serialization_id|data/\d+)")  # fmt: skip
_CONVERT = (
    "save the weights alone, where you trust the file: "
    'torch.save(model.state_dict(), "weights.pt"), or safetensors.torch.save_file'
)


def load_torch_file(path: Path) -> object:
    """What a file of ``torch.save`` holds: tensors on the CPU in dicts and lists.

    Args:
        path: of a plain file, whose size has been checked.

    Raises:
        OSError: it cannot be read.
        UnusableFileError: it is no file of ``torch.save``, is damaged, holds other objects, or claims more than it has.
    """
    with path.open("rb") as stream:
        start = stream.read(64)
    try:
        if start.startswith(ZIP_START):
            _check_zip(path)
        elif _LEGACY_START.match(start):
            _check_legacy(path)
        else:
            raise NoStateDictError("it is no file of torch.save")
    except NoStateDictError as error:
        raise UnusableFileError(path, f"not loaded: {error}; {_CONVERT}") from None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of how torch itself is written
            content: object = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file fails in many ways
        reason = " ".join(str(error).split())[:200]
        raise UnusableFileError(path, f"torch.load(weights_only=True) refuses it: {reason}; {_CONVERT}") from None
    return content


def _check_legacy(path: Path) -> None:
    with path.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as content:
        size = len(content)

        def check_storage(key: str, claimed: int) -> None:
            if claimed > size:
                raise NoStateDictError(f"storage {key[:40]!r} claims {claimed} bytes in a file of {size}")

        for _ in range(_LEGACY_PICKLES):
            check_pickle(content, check_storage)  # type: ignore[arg-type] # a map reads as a file does


def _check_zip(path: Path) -> None:
    _check_directory(path)
    try:
        with zipfile.ZipFile(path) as archive:
            records = archive.infolist()
            _check_records(records, path.stat().st_size)
            sizes = {record.filename.partition("/")[2]: record.file_size for record in records}
            (pickle,) = (record for record in records if record.filename.endswith("/data.pkl"))
            content = archive.read(pickle)
    except NoStateDictError:
        raise
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, ValueError, EOFError, struct.error) as error:
        raise NoStateDictError(f"its zip archive is damaged ({error})") from None

    def check_storage(key: str, claimed: int) -> None:
        stored = sizes.get(f"data/{key}")
        if stored is None or claimed > stored:
            raise NoStateDictError(f"storage {key[:40]!r} claims {claimed} bytes and has {stored or 0}")

    check_pickle(io.BytesIO(content), check_storage)


def _check_directory(path: Path) -> None:
    """Check that one list of records, of a common length, ends where the file's end records begin.

    Two programs that read an archive could otherwise find different ones in it.
    """
    with path.open("rb") as stream:
        total = stream.seek(0, io.SEEK_END)
        stream.seek(max(0, total - 98))
        tail = stream.read().rjust(98, b"\0")
    large, locator, end = tail[:56], tail[56:76], tail[76:]
    if end[:4] != b"PK\x05\x06":
        raise NoStateDictError("its zip archive is cut off, or something stands behind it")
    size, offset = struct.unpack("<II", end[12:20])
    behind = total - 22
    if locator[:4] == b"PK\x06\x07":
        if large[:4] != b"PK\x06\x06":
            raise NoStateDictError("the end of its zip archive is damaged")
        size, offset = struct.unpack("<QQ", large[40:56])
        behind = total - 98
    if size > _MOST_DIRECTORY or offset + size != behind:
        raise NoStateDictError("the list of records of its zip archive is not where it says, or too long")


def _check_records(records: list[zipfile.ZipInfo], file_size: int) -> None:
    names = [record.filename for record in records]
    inner = {name.partition("/")[2] for name in names}
    if any(name == "constants.pkl" or name.startswith("code/") for name in inner):
        raise NoStateDictError("it is a TorchScript program, and programs are not taken as weights")
    if any(name == "archive_format" or name.startswith("models/") or name.endswith(".json") for name in inner):
        raise NoStateDictError("it is a program of torch.export, and programs are not taken as weights")
    if "data.pkl" not in inner or len(inner) != len(names) or len({name.partition("/")[0] for name in names}) != 1:
        raise NoStateDictError("it is a zip archive, but none of torch.save")
    for record in records:
        if not _RECORD.fullmatch(record.filename):
            raise NoStateDictError(f"it holds {record.filename[:60]!r}, which torch.save does not write")
        if record.compress_type != zipfile.ZIP_STORED or record.compress_size != record.file_size:
            raise NoStateDictError(f"its record {record.filename[:60]!r} is compressed, which torch.save never does")
        if record.flag_bits & 1:
            raise NoStateDictError(f"its record {record.filename[:60]!r} is encrypted")
        if record.filename.endswith("/data.pkl") and record.file_size > _MOST_PICKLE:
            raise NoStateDictError(f"its pickle has {record.file_size} bytes; at most {_MOST_PICKLE} are read")
    total = sum(record.file_size for record in records)
    if total > file_size:
        raise NoStateDictError(f"its records have {total} bytes, more than the {file_size} of the file")
