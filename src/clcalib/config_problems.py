"""What is wrong with a configuration, in words: the key, what was expected, what came and what to do."""

from __future__ import annotations

import difflib
import errno
import inspect
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, ValidationError, create_model
from pydantic_core import ErrorDetails

from clcalib.config_sources import is_no_path, value_at
from clcalib.reading.state_dict import WEIGHT_SUFFIXES

PICKLE_SUFFIXES = (".pkl", ".pickle")
PROGRAM_SUFFIXES = (".pt2", ".ptl", ".jit", ".ts", ".torchscript", ".onnx")
_LONGEST_VALUE = 60
_LONGEST_PATH = 1000

# Pydantic's names of errors, in the words of TOML.
_KINDS = {
    "model_type": "a table",
    "dict_type": "a table",
    "int_type": "a whole number",
    "float_type": "a number",
    "bool_type": "true or false",
    "string_type": "a string",
    "finite_number": "a finite number",
}


def options_model(function: Callable[..., Any]) -> type[BaseModel]:
    """A pydantic model of the keyword arguments of ``function``, so that its signature is the only list of options.

    Arguments without a default are left out: they are what the caller provides, not what a user configures.
    """
    hints = typing.get_type_hints(function)
    fields: dict[str, Any] = {
        name: (hints.get(name, Any), parameter.default)
        for name, parameter in inspect.signature(function).parameters.items()
        if parameter.default is not inspect.Parameter.empty
    }
    settings = ConfigDict(extra="forbid", arbitrary_types_allowed=True, allow_inf_nan=False)
    return create_model(function.__name__, __config__=settings, **fields)


def describe_errors(model: type[BaseModel], error: ValidationError) -> list[str]:
    """One line for each error of pydantic, in the order of the sections."""
    return [_describe(model, details) for details in error.errors()]


def unknown_name(key: str, name: str, valid: Iterable[str]) -> str:
    """The problem line for a name that is not in a literal table.

    Example:
        >>> unknown_name("recipe.name", "qdrp", ["brecq", "qdrop"])
        "recipe.name: expected one of brecq, qdrop, got 'qdrp'; did you mean 'qdrop'?"
    """
    names = sorted(valid)
    return f"{key}: expected one of {', '.join(names)}, got {name!r}{_did_you_mean(name, names)}"


def machine_problems(table: Mapping[str, Any]) -> list[str]:
    """What this machine does not have: the files that the table names, and the device."""
    return [*_file_problems(table), *_device_problems(table)]


def device_problem(device: str) -> str:
    """Why ``device`` cannot be used here, or an empty string."""
    kind, _, index = device.partition(":")
    if kind == "cuda" and not torch.cuda.is_available():
        return "this machine (or this build of torch) has no CUDA device; use cpu"
    if kind == "cuda" and index.isdecimal() and int(index) >= torch.cuda.device_count():
        return f"the CUDA devices here are numbered from 0 to {torch.cuda.device_count() - 1}"
    if kind == "mps" and not torch.backends.mps.is_available():
        return "this machine (or this build of torch) has no MPS device; use cpu"
    return ""


def _device_problems(table: Mapping[str, Any]) -> Iterator[str]:
    device = value_at(table, "run", "device")
    if isinstance(device, str) and (problem := device_problem(device)):
        yield f"run.device: {device!r} is not available: {problem}"


def _file_problems(table: Mapping[str, Any]) -> Iterator[str]:
    entry = value_at(table, "model", "entry")
    if isinstance(entry, str) and ".py:" in entry:
        file = Path(entry.rpartition(":")[0])
        if not _is_there(file, Path.is_file):
            yield f"model.entry: there is no file {_shown(file)}"
    weights = value_at(table, "model", "weights")
    if isinstance(weights, str) and not is_no_path("model", weights):
        yield from _weights_problems(Path(weights))
    for key in ("calibration", "evaluation"):
        path = value_at(table, "data", key)
        if isinstance(path, str) and not is_no_path("data", path) and not _is_there(path, Path.exists):
            yield f"data.{key}: there is no file or folder {_shown(path)}"
    folder = value_at(table, "run", "spill_folder")
    if isinstance(folder, str) and not _is_there(folder, Path.is_dir):
        yield f"run.spill_folder: there is no folder {_shown(folder)}"
    out = value_at(table, "run", "out")
    if isinstance(out, str) and not _can_be(out):
        yield f"run.out: expected the path of the output folder, got {_shown(out)}"


def _weights_problems(path: Path) -> Iterator[str]:
    suffix = path.suffix.lower()
    if suffix in PICKLE_SUFFIXES:
        yield (
            f"model.weights: {path.name} is a pickle, and loading a pickle can run any code, so none is ever loaded; "
            'save the state dict, where you trust the file: torch.save(model.state_dict(), "weights.pt")'
        )
    elif suffix in PROGRAM_SUFFIXES:
        yield (
            f"model.weights: {path.name} is a program, and programs are not taken as weights; "
            'save its state dict: torch.save(model.state_dict(), "weights.pt")'
        )
    elif suffix not in WEIGHT_SUFFIXES:
        yield f"model.weights: expected the path of a {', '.join(WEIGHT_SUFFIXES)} file, got {path}"
    elif not _is_there(path, Path.is_file):
        yield f"model.weights: there is no file {_shown(path)}"


def _is_there(path: str | Path, kind: Callable[[Path], bool]) -> bool:
    return _can_be(path) and kind(Path(path))


def _can_be(path: str | Path) -> bool:
    """Whether the system takes it as a path: one too long, or with a zero byte, it refuses to look for."""
    try:
        Path(path).stat()
    except FileNotFoundError:
        return True
    except (OSError, ValueError) as error:
        return getattr(error, "errno", None) in (errno.ENOTDIR, errno.EACCES, errno.EPERM)
    return True


def _shown(path: str | Path) -> str:
    text = str(path)
    return text if len(text) <= _LONGEST_PATH else f"{text[:_LONGEST_PATH]}... of {len(text)} characters"


def _describe(model: type[BaseModel], details: ErrorDetails) -> str:
    location = [str(part) for part in details["loc"]]
    key = ".".join(location) or "the table"
    if details["type"] == "extra_forbidden":
        return f"{key}: unknown key{_nearest_key(model, location)}"
    expected = _description(model, location)
    if details["type"] == "missing":
        return f"{key}: missing" + (f"; give {expected}" if expected else "")
    own_words = details["msg"].removeprefix("Input should be ").removeprefix("Value error, ")
    expected = expected or _KINDS.get(details["type"]) or own_words
    return f"{key}: expected {expected}, got {_shortened(details['input'])}"


def _nearest_key(model: type[BaseModel], location: list[str]) -> str:
    section = _model_at(model, location[:-1])
    valid = list(section.model_fields) if section else []
    name = location[-1]
    near = _did_you_mean(name, valid)
    if near:
        return near
    for owner, field in model.model_fields.items():
        other = section_of(field.annotation)
        if other is not None and name in other.model_fields:
            return f"; it belongs to [{owner}]"
    return f"; valid are {', '.join(valid)}" if valid else "; there are none here"


def _description(model: type[BaseModel], location: list[str]) -> str:
    section = _model_at(model, location[:-1])
    field = section.model_fields.get(location[-1]) if section and location else None
    return (field.description if field else None) or ""


def _model_at(model: type[BaseModel], location: list[str]) -> type[BaseModel] | None:
    """Follow the keys of an error's location down to the model that holds the last one."""
    found: type[BaseModel] | None = model
    for part in location:
        field = found.model_fields.get(part) if found else None
        # A part that is no field is the key of a table of models: the model stays.
        found = section_of(field.annotation) if field else found
    return found


def section_of(annotation: Any) -> type[BaseModel] | None:
    """The model in an annotation such as ``Section``, ``Section | None`` or ``dict[str, Section]``."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((found for part in typing.get_args(annotation) if (found := section_of(part))), None)


def _did_you_mean(name: str, valid: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, list(valid), n=1, cutoff=0.5)
    return f"; did you mean {near[0]!r}?" if near else ""


def _shortened(value: object) -> str:
    text = repr(value)
    return text if len(text) <= _LONGEST_VALUE else text[: _LONGEST_VALUE - 3] + "..."
