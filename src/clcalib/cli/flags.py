"""The options that several commands share, and how flags become a configuration table."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from clcalib.config_sources import Table, merge, parse_assignment, read_toml, with_absolute_paths
from clcalib.errors import ArgumentError

ConfigArgument = Annotated[
    Path | None, typer.Argument(metavar="[CONFIG.toml]", help="A configuration file; flags win over it.")
]
ModelOption = Annotated[
    str | None,
    typer.Option(
        "--model", metavar="ENTRY", help="What builds the network: package.module:callable or path/to/file.py:callable."
    ),
]
WeightsOption = Annotated[
    Path | None, typer.Option("--weights", metavar="FILE", help="Its weights, a .safetensors file.")
]
SubmoduleOption = Annotated[
    str | None,
    typer.Option("--submodule", metavar="PATH", help="Quantize this part of the network only, such as backbone."),
]
EvaluationOption = Annotated[
    Path | None,
    typer.Option("--evaluation", metavar="PATH", help="Evaluation images, as --calibration takes them; labels if any."),
]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Set any key of the configuration: --set data.count=512"),
]
DeviceOption = Annotated[
    str | None, typer.Option("--device", metavar="NAME", help="cpu (default), cuda, cuda:N or mps.")
]
ThreadsOption = Annotated[
    int | None, typer.Option("--threads", metavar="N", help="CPU threads of torch; all cores by default.")
]

_BITS = re.compile(r"w(\d+)a(\d+)", re.IGNORECASE)


def collect(config: Path | None, assignments: Sequence[str] | None, flags: Table) -> tuple[dict[str, Any], str]:
    """Lay the TOML, the ``--set`` assignments and the flags over each other, in this order; the later one wins.

    Returns:
        The table, and what errors call it: the TOML's path, or the command line.

    Raises:
        ConfigError: the TOML or an assignment cannot be read.
    """
    base = read_toml(config) if config is not None else {}
    here = Path.cwd()
    settings = [with_absolute_paths(parse_assignment(assignment), here) for assignment in assignments or ()]
    source = str(config) if config is not None else "command line"
    return merge(base, *settings, with_absolute_paths(given(flags), here)), source


def given(flags: Table) -> dict[str, Any]:
    """Leave out the flags that were not given, and make paths strings as they are in a TOML."""
    table: dict[str, Any] = {}
    for section, values in flags.items():
        kept = {
            key: str(value) if isinstance(value, Path) else value for key, value in values.items() if value is not None
        }
        if kept:
            table[section] = kept
    return table


def split_bits(bits: str | None) -> tuple[int | None, int | None]:
    """``"W2A4"`` as the widths of weights and activations.

    Example:
        >>> split_bits("W2A4")
        (2, 4)

    Raises:
        ArgumentError: another form.
    """
    if bits is None:
        return None, None
    match = _BITS.fullmatch(bits.strip())
    if match is None:
        raise ArgumentError("--bits", "the widths of weights and activations, such as W2A4", repr(bits))
    return int(match[1]), int(match[2])


def split_names(names: str | None) -> list[str] | None:
    """``"flip, crop"`` as a list.

    Raises:
        ArgumentError: there is no name in it.
    """
    if names is None:
        return None
    parts = [name.strip() for name in names.split(",") if name.strip()]
    if not parts:
        raise ArgumentError("--augment", "names of augmentations, such as flip,crop", repr(names), "leave it out")
    return parts


def split_shape(shape: str) -> tuple[int, ...]:
    """``"3,32,32"`` as the shape of one image.

    Raises:
        ArgumentError: not whole numbers above 0.
    """
    parts = re.split(r"[,x]", shape.strip())
    if not all(part.strip().isdecimal() and int(part) > 0 for part in parts):
        raise ArgumentError("--shape", "the shape of one image, such as 3,32,32", repr(shape))
    return tuple(int(part) for part in parts)
