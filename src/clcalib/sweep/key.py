"""The key of a run: the hash of its configuration, the code and the data, and of nothing else.

Where files lie, and where results go, is no part of it: a folder may move, and another machine has other paths.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.machinery
import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from clcalib.config_sections import ModelSection, RunConfig
from clcalib.data.file_list import SUFFIX as LIST
from clcalib.data.file_list import read_file_list
from clcalib.data.hugging_face import PREFIX as HUB
from clcalib.named_models import is_pretrained
from clcalib.report.environment import versions

PACKAGE = Path(__file__).parent.parent
_SOURCES = (".py", ".cpp")
_NOT_IN_A_RESULT = ("cli", "sweep", "tracking")  # parts of the package that no run's numbers depend on
_PATHS = {"data": ("calibration", "evaluation"), "model": ("weights",)}
_PLACES = {"run": ("out", "overwrite", "spill_folder", "memory_budget")}
_CHUNK = 1 << 20


@functools.cache
def code_version() -> str:
    """The versions of clcalib and torch, and the digest of clcalib's source without command line and sweeps."""
    sources = [path for path in _sources(PACKAGE) if path.relative_to(PACKAGE).parts[0] not in _NOT_IN_A_RESULT]
    known = versions()
    return f"clcalib {known['clcalib']}, source {_digest_of(sources, PACKAGE)[:16]}, torch {known['torch']}"


def model_digest(section: ModelSection) -> str:
    """sha256 of the weights' file and of the code that builds the network: its file, or the package that it is of."""
    place = section.entry.rpartition(":")[0]
    code = file_digest(Path(place)) if place.endswith(".py") else _package_digest(place.partition(".")[0])
    path = section.weights
    weights = str(path) if path is None or is_pretrained(path) else file_digest(path)
    return _hash([code, weights])


def data_digest(config: RunConfig) -> str:
    """sha256 of the calibration and the evaluation images, as files."""
    paths = (config.data.calibration, config.data.evaluation)
    return _hash(["none" if path is None else images_digest(path) for path in paths])


def images_digest(path: Path) -> str:
    """sha256 of the names and contents of what images are read from.

    These are a folder, a file, a tile sheet with its index, a list with its files; or the name of a data set of a hub.
    """
    if str(path).startswith(HUB):
        return _hash(str(path))
    if path.suffix.lower() == LIST:
        files = [file for file in read_file_list(path).files if file.is_file()]  # reading one that is missing tells it
        return _hash([file_digest(path), *(file_digest(file) for file in files)])
    if path.is_dir():
        return _digest_of(sorted(file for file in path.rglob("*") if file.is_file()), path)
    if path.suffix.lower() in (".json", ".png"):
        stem = path.stem
        beside = (file for file in path.parent.iterdir() if file.suffix.lower() in (".json", ".png"))
        return _digest_of(sorted(file for file in beside if file.name.startswith(stem)), path.parent)
    return file_digest(path)


def file_digest(path: Path) -> str:
    """sha256 of a file's content; read again only where its size or time has changed."""
    found = path.stat()
    return _file_digest(path, found.st_size, found.st_mtime_ns)


def keys(config: RunConfig, code: str, model: str, data: str) -> tuple[str, str, str]:
    """The key of a run, the key without its seed, and the key without its contrastive term."""
    table = canonical(config)
    parts = {"code": code, "model": model, "data": data}
    without_seed = {**table, "run": {name: value for name, value in table["run"].items() if name != "seed"}}
    without_term = {name: value for name, value in table.items() if name != "contrastive"}
    key, cell, pair = (_hash({**parts, "configuration": each}) for each in (table, without_seed, without_term))
    return key, cell, pair


def canonical(config: RunConfig) -> dict[str, Any]:
    """A configuration without what its result does not depend on, and with names in place of paths."""
    table: dict[str, Any] = config.model_dump(mode="json", exclude={"tracking"})
    for section, names in {**_PATHS, **_PLACES}.items():
        for name in names:
            table[section].pop(name, None)
    if ".py:" in config.model.entry:
        place, _, name = config.model.entry.rpartition(":")
        table["model"]["entry"] = f"{Path(place).name}:{name}"
    return table


@functools.cache
def _file_digest(path: Path, size: int, time: int) -> str:
    total = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_CHUNK):
            total.update(block)
    return total.hexdigest()


@functools.cache
def _package_digest(name: str) -> str:
    """Of the source of a package, which is found and not imported; the current folder is looked at, too."""
    spec = importlib.machinery.PathFinder.find_spec(name, [str(Path.cwd()), *sys.path])
    if spec is None:
        return "none"  # loading it will say so
    if spec.submodule_search_locations:
        folders = [Path(place) for place in spec.submodule_search_locations]
        return _hash([_digest_of(_sources(folder), folder) for folder in folders])
    return "none" if spec.origin is None else file_digest(Path(spec.origin))


def _sources(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.suffix in _SOURCES and path.is_file())


def _digest_of(files: Iterable[Path], folder: Path) -> str:
    return _hash([(file.relative_to(folder).as_posix(), file_digest(file)) for file in files])


def _hash(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, ensure_ascii=False).encode()).hexdigest()
