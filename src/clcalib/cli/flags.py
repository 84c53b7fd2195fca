"""How flags become a configuration table."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from clcalib.cli.given import FlagsOverSaved, ModelFlags, WidthFlags
from clcalib.config_sources import (
    CONFIG_FILE,
    Table,
    merge,
    over_saved,
    parse_assignment,
    read_toml,
    saved_config,
    with_absolute_paths,
)
from clcalib.errors import ArgumentError
from clcalib.named_models import PRETRAINED
from clcalib.quant.policy import FLOAT, Override

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


def one_config(argument: Path | None, option: Path | None) -> Path | None:
    """The configuration file, which may be given with and without ``--config``.

    Raises:
        ArgumentError: it is given in both ways.
    """
    if argument is not None and option is not None:
        raise ArgumentError("--config", "one configuration file", f"{argument} and {option}", "leave one of them out")
    return argument or option


def collect_saved(folder: Path, assignments: Sequence[str] | None, flags: Table) -> tuple[dict[str, Any], str]:
    """The same with the configuration that a run left in its folder in place of a TOML.

    Raises:
        ArgumentError: there is none.
        ConfigError: an assignment cannot be read.
    """
    base, here = saved_config(folder), Path.cwd()
    if not base:
        expected, got = "the output folder of an interrupted run", f"{folder}, which has no {CONFIG_FILE}"
        raise ArgumentError("--resume", expected, got, "begin anew, with --out")
    settings = [with_absolute_paths(parse_assignment(assignment), here) for assignment in assignments or ()]
    table = over_saved(base, folder, *settings, with_absolute_paths(given(flags), here), may_download=True)
    return table, str(folder / CONFIG_FILE)


def refuse_with_resume(config: Path | None, out: Path | None, *, is_dry: bool, overwrite: bool) -> None:
    """Raise for what makes no sense beside ``--resume``."""
    for name, is_given in (("CONFIG", config), ("--out", out), ("--dry-run", is_dry), ("--overwrite", overwrite)):
        if is_given:
            remedy = "the folder has the settings of its run; leave it out"
            raise ArgumentError(name, "nothing beside --resume", config or out or name, remedy)


def model_flags(flags: ModelFlags) -> dict[str, Any]:
    """The keys of ``[model]`` that the flags stand for.

    Raises:
        ArgumentError: weights are given in two ways.
    """
    if flags.is_pretrained and flags.weights is not None:
        remedy = "leave one of the two out"
        raise ArgumentError("--weights, --pretrained", "a file of weights, or the published ones", "both", remedy)
    weights = PRETRAINED if flags.is_pretrained else flags.weights
    return {"entry": flags.entry, "weights": weights, "submodule": flags.submodule}


def tables_of(flags: FlagsOverSaved) -> list[dict[str, Any]]:
    """The tables to lay over a saved configuration, the later one wins.

    Raises:
        ArgumentError, ConfigError: of ``model_flags``; an assignment cannot be read.
    """
    here = Path.cwd()
    own = {
        "model": model_flags(flags.model),
        "data": {"evaluation": flags.evaluation},
        "run": {"device": flags.device, "threads": flags.threads},
    }
    assigned = [with_absolute_paths(parse_assignment(assignment), here) for assignment in flags.settings or ()]
    return [*assigned, with_absolute_paths(given(own), here)]


def saved_table(folder: Path, flags: FlagsOverSaved) -> dict[str, Any]:
    """The configuration in a folder of results, under the flags."""
    return over_saved(saved_config(folder), folder, *tables_of(flags))


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


def quantization_flags(flags: WidthFlags) -> dict[str, Any]:
    """The keys of ``[quantization]`` that the flags of widths stand for, but for the patterns.

    Raises:
        ArgumentError: two flags name different widths for the same thing.
    """
    plain = [text for text in flags.bits or () if "=" not in text]
    if len(plain) > 1:
        expected, remedy = "one pair of widths for all layers", "give the others a pattern, as in 'layer4.*=W4A8'"
        raise ArgumentError("--bits", expected, " and ".join(plain), remedy)
    weights, activations = split_bits(plain[0] if plain else None)
    edge_bits = flags.edge_bits
    is_number = edge_bits is not None and edge_bits.strip().isdecimal()
    return {
        "weights": _one_width("--weight-bits", flags.weight_bits, weights, plain),
        "activations": _one_width("--activation-bits", flags.activation_bits, activations, plain),
        "first_last_bits": int(edge_bits) if edge_bits is not None and is_number else edge_bits,
        "unit_patterns": list(flags.unit_patterns) if flags.unit_patterns else None,
        "target": flags.target,
    }


def _one_width(flag: str, own: int | None, of_both: int | None, plain: Sequence[str]) -> int | None:
    """The width of a flag of its own, or the one in ``--bits``; where both are given, they must agree."""
    if own is None or of_both is None or own == of_both:
        return of_both if own is None else own
    raise ArgumentError(flag, f"{of_both}, as --bits {plain[0]} says", own, "leave one of the two out")


def with_patterns(table: dict[str, Any], flags: WidthFlags) -> dict[str, Any]:
    """Add ``--bits PATTERN=WIDTHS`` and ``--float PATTERN`` behind the overrides of the table, so that they win.

    Raises:
        ArgumentError: there is no pattern, or no widths.
    """
    given_here = [text.rpartition("=")[::2] for text in flags.bits or () if "=" in text]
    given_here += [(pattern, FLOAT) for pattern in flags.floats or ()]
    if not given_here:
        return table
    if any(not pattern.strip() for pattern in flags.floats or ()):
        raise ArgumentError("--float", "a pattern of layers, such as '*.se.*' or @linear", "an empty one")
    for pattern, widths in given_here:
        if not pattern.strip():
            raise ArgumentError("--bits", "PATTERN=WIDTHS, such as 'layer4.*=W4A8'", repr(f"{pattern}={widths}"))
        Override.parse(f"--bits {pattern}", widths)
    new = {pattern.strip(): widths for pattern, widths in given_here}
    section = table.get("quantization") or {}
    overrides = section.get("overrides", {}) if isinstance(section, Mapping) else None
    if not isinstance(overrides, Mapping):
        return table  # which is refused
    old = {pattern: widths for pattern, widths in overrides.items() if pattern not in new}
    return {**table, "quantization": {**section, "overrides": {**old, **new}}}


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
