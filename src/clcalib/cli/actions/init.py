"""``clcalib init``: a TOML for a network, with every key explained and values that fit it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from rich.text import Text

from clcalib.cli.flags import model_flags
from clcalib.cli.given import ModelFlags
from clcalib.cli.messages import new_console
from clcalib.cli.starter import starter
from clcalib.config import build
from clcalib.config_sections import ModelConfig
from clcalib.config_sources import is_no_path, read_toml, with_absolute_paths
from clcalib.config_transform import TRANSFORM_KEYS, own_transform_of
from clcalib.errors import OutputExistsError
from clcalib.files import write_atomically
from clcalib.named_models import OwnTransform, is_named


def write_starter(
    model: str, flags: ModelFlags, images: Path | None, evaluation: Path | None, out: Path, *, is_overwriting: bool
) -> None:
    """Write the file, and tell what to do next.

    Raises:
        OutputExistsError: it exists and is not to be overwritten.
    """
    if out.exists() and not is_overwriting:
        raise OutputExistsError(f"{out} exists; name another file by --out, or say --overwrite")
    section = {key: str(value) for key, value in model_flags(flags).items() if value is not None}
    here = with_absolute_paths({"model": section}, Path.cwd())
    build(ModelConfig, here, "command line")  # raises where the network or its weights are not there
    own = own_transform_of(here)
    given_data = {"calibration": images, "evaluation": evaluation}
    data = {key: _path(str(value), "data", out) for key, value in given_data.items() if value is not None}
    values: dict[str, dict[str, Any]] = {
        "model": {**section, **({"weights": _path(section["weights"], "model", out)} if "weights" in section else {})},
        "data": {"calibration": "images", **data, **_transform(own)},
        "quantization": {"weights": 4, "activations": 4},
        "recipe": {"name": "fast"},
        "run": {"out": f"runs/{_short(model)}", "seed": 0},
    }
    if ".py:" in model:
        file, _, name = model.rpartition(":")
        values["model"]["entry"] = f"{_path(file, 'model', out)}:{name}"
    write_atomically(out, starter(values, _notes(model, own, values), out.name).encode())
    build(ModelConfig, {"model": read_toml(out)["model"]}, str(out))
    log = new_console(is_stderr=True)
    new_console().print(Text(str(out)), soft_wrap=True)
    if images is None:
        log.print(Text(f"next: put the path of your images into {out}, as data.calibration"), soft_wrap=True)
    log.print(Text(f"next: clcalib quantize {out} --dry-run, then clcalib quantize {out}"), soft_wrap=True)


def _transform(own: OwnTransform | None) -> dict[str, Any]:
    if own is None or own.transform is None:
        return {}
    found = {key: getattr(own.transform, key) for key in TRANSFORM_KEYS}
    return {key: value for key, value in found.items() if value is not None and value is not False}


def _notes(model: str, own: OwnTransform | None, values: dict[str, Any]) -> dict[str, list[str]]:
    notes: dict[str, list[str]] = {}
    if own is not None and own.transform is not None:
        notes["data"] = [f"Sizes and colours are those of {model} itself: {own.transform.describe()}."]
    elif own is not None:
        notes["data"] = [f"To be filled in: the transform of {model} has parts that clcalib does not know: {own.text}."]
    else:
        notes["data"] = ["Sizes and colours have to be those that the network was trained with: please check them."]
    if is_named(model) and "weights" not in values["model"]:
        notes["model"] = ["It has random weights as long as none are given here."]
    return notes


def _path(path: str, section: str, out: Path) -> str:
    """A path as the file says it: from its own folder, where it lies below that."""
    if is_no_path(section, path):
        return path
    absolute = Path(os.path.abspath(Path(path).expanduser()))
    folder = Path(os.path.abspath(out)).parent
    return absolute.relative_to(folder).as_posix() if absolute.is_relative_to(folder) else str(absolute)


def _short(model: str) -> str:
    """A name for the folder of results."""
    return "".join(letter if letter.isalnum() or letter in "._-" else "-" for letter in model.rpartition(":")[2])
