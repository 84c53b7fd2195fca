"""What an ONNX file claims is compared with what is there, before anything is read or allocated for it."""

from __future__ import annotations

import math
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from clcalib.errors import UnusableFileError

# Bits of a value, by the name of its type.
_BITS = {
    **dict.fromkeys(("FLOAT", "INT32", "UINT32"), 32),
    **dict.fromkeys(("FLOAT16", "BFLOAT16", "INT16", "UINT16"), 16),
    **dict.fromkeys(("DOUBLE", "INT64", "UINT64", "COMPLEX64"), 64),
    **dict.fromkeys(("INT8", "UINT8", "BOOL", "FLOAT8E8M0"), 8),
    **dict.fromkeys(("FLOAT8E4M3FN", "FLOAT8E4M3FNUZ", "FLOAT8E5M2", "FLOAT8E5M2FNUZ"), 8),
    **dict.fromkeys(("INT4", "UINT4", "FLOAT4E2M1"), 4),
    **dict.fromkeys(("INT2", "UINT2"), 2),
    "COMPLEX128": 128,
}
_FIELDS = ("float_data", "int32_data", "string_data", "int64_data", "double_data", "uint64_data")
_EXTERNAL = 1
_KEYS = frozenset({"location", "offset", "length", "checksum"})


def check_tensors(proto: Any, path: Path | None, type_name: Any) -> int:
    """Check every tensor of a model, with those of its subgraphs and functions.

    Args:
        proto: the ``onnx.ModelProto``, read without external tensors.
        path: of the file; None for a model in memory, which can have no external tensors.
        type_name: the number of a type -> its name.

    Returns:
        Bytes of the files of external tensors.

    Raises:
        UnusableFileError: a tensor has another size than its shape says, or an external one lies elsewhere than in
            the model's folder, behind a link, or beyond the end of its file.
    """
    named = "model" if path is None else path
    files: dict[Path, int] = {}
    for tensor in _tensors(proto):
        size = _bytes_of(tensor, named, type_name)
        if tensor.data_location == _EXTERNAL:
            if path is None:
                raise UnusableFileError(named, f"tensor {_shown(tensor)} is external, and bytes have no folder")
            file, file_size = _external_file(tensor, path)
            _check_place(tensor, path, size, file_size)
            files[file] = file_size
        elif size is not None:
            _check_values(tensor, named, size)
    return sum(files.values())


def _tensors(proto: Any) -> Iterator[Any]:
    graphs = [proto.graph, *(part for each in proto.training_info for part in (each.initialization, each.algorithm))]
    nodes = [node for function in proto.functions for node in function.node]
    while graphs or nodes:
        if graphs:
            graph = graphs.pop()
            yield from graph.initializer
            yield from (part for sparse in graph.sparse_initializer for part in (sparse.values, sparse.indices))
            nodes += graph.node
            continue
        for attribute in nodes.pop().attribute:
            graphs += [*attribute.graphs, *([attribute.g] if attribute.HasField("g") else [])]
            yield from [*attribute.tensors, *([attribute.t] if attribute.HasField("t") else [])]
            sparse = [*attribute.sparse_tensors]
            sparse += [attribute.sparse_tensor] if attribute.HasField("sparse_tensor") else []
            yield from (part for each in sparse for part in (each.values, each.indices))


def _bytes_of(tensor: Any, named: object, type_name: Any) -> int | None:
    """The bytes that a tensor takes as its shape says; None for texts."""
    try:
        kind = type_name(tensor.data_type)
    except ValueError:
        kind = str(tensor.data_type)
    if any(size < 0 for size in tensor.dims):
        raise UnusableFileError(named, f"tensor {_shown(tensor)} has the shape {list(tensor.dims)}")
    if kind == "STRING":
        return None
    if kind == "UNDEFINED" and not tensor.dims and not tensor.raw_data:
        return 0  # an empty placeholder
    if kind not in _BITS:
        raise UnusableFileError(named, f"tensor {_shown(tensor)} has the unknown type {kind}")
    return (math.prod(int(size) for size in tensor.dims) * _BITS[kind] + 7) // 8


def _check_values(tensor: Any, named: object, size: int) -> None:
    stored = len(tensor.raw_data)
    if not tensor.HasField("raw_data"):
        stored = sum(len(getattr(tensor, field)) for field in _FIELDS)
        # Some small types are stored in larger ones, several in one, and complex ones as two.
        possible = _field_counts(tensor, size)
        if stored not in possible:
            raise UnusableFileError(named, f"tensor {_shown(tensor)} has {stored} values for its shape")
    elif stored != size:
        raise UnusableFileError(named, f"tensor {_shown(tensor)} has {stored} bytes, and {size} for its shape")


def _field_counts(tensor: Any, size: int) -> tuple[int, ...]:
    count = math.prod(tensor.dims)
    return (0,) if size == 0 else (count, size) if size < count else (count, 2 * count)


def _external_file(tensor: Any, model: Path) -> tuple[Path, int]:
    """The file of an external tensor, and its bytes."""
    keys = [entry.key for entry in tensor.external_data]
    location = next((entry.value for entry in tensor.external_data if entry.key == "location"), "")
    if len(set(keys)) != len(keys) or not set(keys) <= _KEYS:
        raise UnusableFileError(model, f"tensor {_shown(tensor)} says twice, or oddly, where its values lie")
    parts = location.split("/")
    is_odd = any(sign in location for sign in "\\:\0") or len(location) > 255 or location.startswith("~")
    if is_odd or any(part in ("", "..") for part in parts):
        told = f"tensor {_shown(tensor)} lies in {location[:80]!r}; expected the name of a file in the model's folder"
        raise UnusableFileError(model, told)
    if model.is_symlink():
        told = "is a symbolic link and has external tensors, which would be sought beside it; give the file itself"
        raise UnusableFileError(model, told)
    place = model.parent
    for part in parts:
        place = place / part
        if place.is_symlink():
            raise UnusableFileError(model, f"tensor {_shown(tensor)} lies behind the symbolic link {place}")
    try:
        status = place.stat()
    except OSError as error:
        told = f"tensor {_shown(tensor)} lies in {location!r}, which cannot be read ({error.strerror})"
        raise UnusableFileError(model, told) from None
    if not stat.S_ISREG(status.st_mode):
        raise UnusableFileError(model, f"tensor {_shown(tensor)} lies in {location!r}, which is no plain file")
    return place, status.st_size


def _check_place(tensor: Any, model: Path, size: int | None, file_size: int) -> None:
    numbers = {entry.key: entry.value for entry in tensor.external_data if entry.key in ("offset", "length")}
    texts = (numbers.get("offset", "0"), numbers.get("length", ""))
    if not all(text.isascii() and (text.isdecimal() or not text) and len(text) < 20 for text in texts) or not texts[0]:
        raise UnusableFileError(model, f"tensor {_shown(tensor)} has no numbers as offset and length")
    offset, length = int(texts[0]), int(texts[1]) if texts[1] else size
    if size is None or length != size or offset + size > file_size:
        raise UnusableFileError(
            model, f"tensor {_shown(tensor)} needs {size} bytes from {offset}, its file gives {length} of {file_size}"
        )


def _shown(tensor: Any) -> str:
    return repr(str(tensor.name)[:60])
