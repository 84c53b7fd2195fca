"""Where a configuration comes from, as plain tables: a TOML file, ``section.key=value``, and a merge of them."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from clcalib.data.hugging_face import PREFIX
from clcalib.errors import ArgumentError, CheckpointError, ConfigError, UnusableFileError
from clcalib.named_models import PRETRAINED
from clcalib.reading.content import MOST_LEVELS, MOST_TOML, check_depth, read_bytes, read_json

Table = Mapping[str, Any]

CONFIG_FILE = "config.json"

# Every part may lack its end, so that nothing is looked at twice.  Quoted parts of keys are words like others.
_TOKEN = re.compile(
    r"""(?P<word>\"{3}(?:[^"\\]|\\.|"(?!""))*\"{0,5}|'{3}(?:[^']|'(?!''))*'{0,5}
    |"(?:[^"\\\n]|\\.)*"?|'[^'\n]*'?|[\w-]+|[ \t]+)|(?P<dot>\.)|(?P<other>\#[^\n]*|.)""",
    re.VERBOSE | re.DOTALL,
)
_PATH_KEYS = (
    ("model", "weights"),
    ("data", "calibration"),
    ("data", "evaluation"),
    ("run", "out"),
    ("run", "spill_folder"),
    ("tracking", "tensorboard"),
    ("tracking", "mlflow"),
)
_NO_PATH = re.compile(r".*://|databricks$|MLFLOW_TRACKING_URI$")  # an address of MLflow, or the variable that has one


def read_toml(path: str | Path) -> dict[str, Any]:
    """Read a TOML file; its relative paths are taken from its own folder.

    Raises:
        ConfigError: there is no such file, or it is not TOML; the message has the line.
    """
    path = Path(path)
    try:
        table = _parsed(read_bytes(path, MOST_TOML).decode(), path)
    except OSError as error:
        raise ConfigError(str(path), [f"cannot be read: {error.strerror}"]) from None
    except UnusableFileError as error:
        raise ConfigError(str(path), [error.reason]) from None
    except ValueError as error:  # of the syntax, the encoding, or a number of too many digits
        raise ConfigError(str(path), [f"not valid TOML: {error}"]) from None
    return with_absolute_paths(table, path.resolve().parent)


def _parsed(text: str, source: str | Path) -> dict[str, Any]:
    """Parse TOML whose keys and values are not nested too deeply.

    The parser takes a time that grows with the square of the parts of a dotted key, so these are counted first.
    """
    parts, deepest = 0, f"is nested deeper than {MOST_LEVELS} levels"
    for token in _TOKEN.finditer(text):
        kind = token.lastgroup
        parts = parts + (kind == "dot") if kind in ("dot", "word") else 0
        if parts > MOST_LEVELS:
            raise UnusableFileError(source, deepest)
    try:
        table = tomllib.loads(text)
    except RecursionError:
        raise UnusableFileError(source, deepest) from None
    check_depth(table, source)
    return table


def parse_assignment(assignment: str) -> dict[str, Any]:
    """Turn ``section.key=value`` into a table.  The value is a TOML value; a bare word counts as a string.

    Example:
        >>> parse_assignment("data.mean=[0.5, 0.5]"), parse_assignment("recipe.name=qdrop")
        ({'data': {'mean': [0.5, 0.5]}}, {'recipe': {'name': 'qdrop'}})

    Raises:
        ConfigError: there is no ``=``, no section, or the value begins like a TOML value and is none.
    """
    key, is_assignment, value = assignment.partition("=")
    if not is_assignment or "." not in key or "\n" in assignment:
        raise ConfigError("--set", [f"expected section.key=value, got {assignment!r}"])
    candidates = [value] if value.lstrip()[:1] in ("[", "{", '"', "'") else [value, json.dumps(value.strip())]
    for text in candidates:
        try:
            return _parsed(f"{key} = {text}", "--set")
        except (ValueError, UnusableFileError):
            continue
    raise ConfigError("--set", [f"expected section.key=value with a TOML value, got {assignment!r}"])


def merge(*tables: Table) -> dict[str, Any]:
    """Lay tables over each other, section by section: of two values for one key the later one wins.

    Example:
        >>> merge({"run": {"seed": 1, "device": "cpu"}}, {"run": {"seed": 2}})
        {'run': {'seed': 2, 'device': 'cpu'}}
    """
    merged: dict[str, Any] = {}
    for table in tables:
        for key, value in table.items():
            old = merged.get(key)
            merged[key] = merge(old, value) if isinstance(old, Mapping) and isinstance(value, Mapping) else value
    return merged


def with_absolute_paths(table: Table, folder: Path) -> dict[str, Any]:
    """Return ``table`` with every path (and a model entry's file) taken from ``folder`` where it is relative."""
    paths: dict[str, Any] = {}
    for section, key in _PATH_KEYS:
        value = value_at(table, section, key)
        if (
            isinstance(value, str)
            and value
            and not (is_no_path(section, value) or (section == "tracking" and _NO_PATH.match(value)))
        ):
            paths = merge(paths, {section: {key: _absolute(value, folder)}})
    entry = value_at(table, "model", "entry")
    if isinstance(entry, str) and ".py:" in entry:
        file, _, name = entry.rpartition(":")
        paths = merge(paths, {"model": {"entry": f"{_absolute(file, folder)}:{name}"}})
    return merge(table, paths)


def is_no_path(section: str, value: str) -> bool:
    """Whether a value that may be a path stands for something else: published weights, a data set of a hub."""
    return (section == "model" and value == PRETRAINED) or (section == "data" and value.startswith(PREFIX))


def value_at(table: Table, section: str, key: str) -> object:
    """The value of ``section.key``, or None where there is none (or the section is no table)."""
    values = table.get(section)
    return values.get(key) if isinstance(values, Mapping) else None


def _absolute(path: str, folder: Path) -> str:
    try:
        return str(folder / Path(path).expanduser())
    except RuntimeError:  # a user of whom nobody knows
        return str(folder / path)


def saved_config(folder: Path) -> dict[str, Any]:
    """The configuration that a run left; an empty table where the model was saved from Python."""
    if not folder.is_dir():
        raise ArgumentError("OUT", "the output folder of a run", str(folder), "there is no such folder")
    path = folder / CONFIG_FILE
    if not path.is_file():
        return {}
    try:
        saved = read_json(path)
    except UnusableFileError as error:
        raise CheckpointError(f"{error}; delete it and give --model") from None
    if not isinstance(saved, dict):
        raise CheckpointError(f"{path}: not a configuration; delete it and give --model")
    return {section: without_nulls(values) for section, values in saved.items()}


def over_saved(saved: Table, folder: Path, *given: Table, may_download: bool = False) -> dict[str, Any]:
    """Lay what was given over the configuration that was found in a folder.

    A result may come from anyone, and a run leaves no code in its folder.  So code that lies there is only run where
    it was given, and not because the folder's own configuration names it.  Nor is anything downloaded for its sake,
    but where a run of one's own goes on.

    Raises:
        ConfigError: the entry is found in the folder, or something would be downloaded, and that was not given.
    """
    asked = [] if may_download else list(_downloads(saved, merge(*given)))
    if asked:
        raise ConfigError(str(folder / CONFIG_FILE), asked)
    entry = value_at(saved, "model", "entry")
    if isinstance(entry, str) and value_at(merge(*given), "model", "entry") is None and _lies_in(entry, folder):
        told = f"model.entry: {entry} is code in the folder of a result; read it, and give it by --model to run it"
        raise ConfigError(str(folder / CONFIG_FILE), [told])
    return merge(saved, *given)


def _downloads(saved: Table, given: Table) -> Iterator[str]:
    """Yield what would be read from the network; calibration images are not read again."""
    for section, key, remedy in (
        ("model", "weights", "--pretrained, or a file by --weights"),
        ("data", "evaluation", "it, or other images, by --evaluation"),
    ):
        value = value_at(saved, section, key)
        if isinstance(value, str) and is_no_path(section, value) and value_at(given, section, key) is None:
            yield f"{section}.{key}: {value} may be a download, and a folder does not ask for one; give {remedy}"


def _lies_in(entry: str, folder: Path) -> bool:
    place, _, _ = entry.rpartition(":")
    top = Path(place) if place.endswith(".py") else Path(place.partition(".")[0])
    try:
        inside = folder.resolve()
        return any(path.exists() and path.resolve().is_relative_to(inside) for path in (top, top.with_suffix(".py")))
    except (OSError, ValueError):
        return False  # what cannot be looked for is not run


def without_nulls(values: Any) -> Any:
    """A section without the keys that hold nothing, which a TOML cannot say."""
    return {key: value for key, value in values.items() if value is not None} if isinstance(values, dict) else values
