"""The one loader of weights: a safetensors file, or a file of ``torch.save`` that holds a state dict."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load as load_safetensors
from safetensors.torch import load_file
from torch import Tensor

from clcalib.errors import UnusableFileError
from clcalib.reading.content import MIB, check_size
from clcalib.reading.torch_file import load_torch_file

SAFETENSORS = (".safetensors",)
TORCH_SAVED = (".pt", ".pth", ".bin", ".ckpt", ".tar")
WEIGHT_SUFFIXES = SAFETENSORS + TORCH_SAVED
# Under these keys training scripts keep the state dict beside the epoch, the optimizer and the like.
WRAPPERS = ("state_dict", "model_state_dict", "model", "net")
# What torch's wrappers for several devices and for compilation put in front of every name.
PREFIXES = ("module.", "_orig_mod.")
MOST_BYTES = 1 << 40
_MOST_HEADER = 16 * MIB

# Beside the weights a checkpoint may hold two moments of each, an average, and all of it in float64.
_TIMES_THE_NETWORK = 8
_AND_SOME = 64 * MIB


def most_weight_bytes(needed: int) -> int:
    """The longest file that is read as the weights of a network of ``needed`` bytes: 8 times that, and 64 MiB."""
    return _TIMES_THE_NETWORK * needed + _AND_SOME


def read_tensors(path: Path, most: int = MOST_BYTES) -> dict[str, Tensor]:
    """The tensors of a safetensors file.

    Args:
        path: of the file.
        most: bytes that the file may have.

    Raises:
        UnusableFileError: it cannot be read, is too long or damaged.
    """
    try:
        check_size(path, most)
        with path.open("rb") as stream:
            _check_header(stream.read(8), path)
        return load_file(path)
    except (OSError, SafetensorError, ValueError, TypeError, KeyError, RuntimeError, OverflowError) as error:
        raise _unreadable(path, error) from error


def parse_tensors(content: bytes, path: Path) -> dict[str, Tensor]:
    """The same of the bytes of such a file.

    Raises:
        UnusableFileError: they are damaged.
    """
    try:
        _check_header(content[:8], path)
        return load_safetensors(content)
    except (SafetensorError, ValueError, TypeError, KeyError, RuntimeError, OverflowError) as error:
        raise _unreadable(path, error) from error


def read_state_dict(path: Path, most: int = MOST_BYTES) -> tuple[dict[str, Tensor], str | None]:
    """The tensors of a file of weights, and the key of ``WRAPPERS`` under which they lay, if any.

    Args:
        path: a .safetensors file, or one of ``torch.save`` with another suffix of ``WEIGHT_SUFFIXES``.
        most: bytes that the file may have.

    Raises:
        UnusableFileError: it cannot be read, is too long or damaged, or holds no state dict.
    """
    suffix = path.suffix.lower()
    if suffix in SAFETENSORS:
        return read_tensors(path, most), None
    if suffix not in TORCH_SAVED:
        raise UnusableFileError(path, f"not a file of weights; expected one of {', '.join(WEIGHT_SUFFIXES)}")
    try:
        check_size(path, most)
        content = load_torch_file(path)
    except OSError as error:
        raise UnusableFileError(path, f"cannot be read ({error.strerror})") from error
    return _state_dict(content, path)


def _state_dict(content: object, path: Path) -> tuple[dict[str, Tensor], str | None]:
    found, wrapper = content, None
    if isinstance(content, Mapping):
        wrapper = next((key for key in WRAPPERS if isinstance(content.get(key), Mapping)), None)
        found = content if wrapper is None else content[wrapper]
    if not isinstance(found, Mapping):
        raise UnusableFileError(path, f"holds a {type(found).__name__}, expected a state dict: a dict name -> tensor")
    for name, value in found.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            inside = "" if wrapper is None else f" under {wrapper!r}"
            got = f"{type(value).__name__} {str(name)[:60]!r}{inside}"
            raise UnusableFileError(path, f"holds a {got}, expected a state dict: a dict name -> tensor")
    return {name: tensor.detach() for name, tensor in found.items()}, wrapper


def _check_header(start: bytes, path: Path) -> None:
    length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
    if length > _MOST_HEADER:
        raise UnusableFileError(path, f"not a readable .safetensors file: its header claims {length} bytes")


def _unreadable(path: Path, error: Exception) -> UnusableFileError:
    if isinstance(error, UnusableFileError):
        return error
    return UnusableFileError(path, f"not a readable .safetensors file: {error}")
