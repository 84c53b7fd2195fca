"""The options that several commands share, and how flags become a configuration table."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from clcalib.cli import completion
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

RUNTIME_HELP = 'What runs ONNX models: onnxruntime (default) or openvino; pip install "clcalib\\[onnxruntime]".'

# Panels of the help.
WIDTHS, ACCURACY, COST, TRACKING = "Widths and units", "Accuracy", "Time, memory and disk", "Experiment trackers"
WORKERS = "Several workers"

ConfigArgument = Annotated[
    Path | None, typer.Argument(metavar="[CONFIG.toml]", help="A configuration file; flags win over it.")
]
ConfigOption = Annotated[
    Path | None, typer.Option("--config", metavar="FILE", help="The same as CONFIG.toml without an option.")
]
ModelOption = Annotated[
    str | None,
    typer.Option(
        "--model",
        metavar="ENTRY",
        autocompletion=completion.models,
        help="The network: torchvision:NAME, timm:NAME, package.module:callable or path/to/file.py:callable.",
    ),
]
WeightsOption = Annotated[
    Path | None,
    typer.Option("--weights", metavar="FILE", help="Its weights: a .safetensors file, or a state dict in a .pt file."),
]
PretrainedOption = Annotated[
    bool,
    typer.Option(
        "--pretrained", help="Of a network by name: the weights that its makers publish, downloaded where needed."
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON on stdout, and nothing else there.")]
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
    str | None,
    typer.Option(
        "--device",
        rich_help_panel=COST,
        metavar="NAME",
        autocompletion=completion.devices,
        help="cpu (default), cuda, cuda:N or mps.",
    ),
]
ThreadsOption = Annotated[
    int | None,
    typer.Option("--threads", rich_help_panel=COST, metavar="N", help="CPU threads of torch; all cores by default."),
]

TensorboardOption = Annotated[
    Path | None,
    typer.Option(
        "--tensorboard",
        rich_help_panel=TRACKING,
        metavar="FOLDER",
        help="Write losses, errors and results for TensorBoard, into a folder in it for each run.",
    ),
]
MlflowOption = Annotated[
    str | None,
    typer.Option(
        "--mlflow",
        rich_help_panel=TRACKING,
        metavar="FOLDER|URI",
        help="The same as a run of MLflow, in a database in this folder, or where a URI says.",
    ),
]

BitsOption = Annotated[
    list[str] | None,
    typer.Option(
        "--bits",
        rich_help_panel=WIDTHS,
        metavar="WIDTHS",
        autocompletion=completion.widths,
        help="W4A4: 2 to 8 bits, 32 is float; again, for some layers, 'layer4.*=W4A8', '@depthwise=W8'.",
    ),
]
FloatOption = Annotated[
    list[str] | None,
    typer.Option(
        "--float", rich_help_panel=WIDTHS, metavar="PATTERN", help="Leave these layers in float: '*.se.*', @linear."
    ),
]
TargetOption = Annotated[
    str | None,
    typer.Option(
        "--target",
        rich_help_panel=WIDTHS,
        metavar="NAME",
        autocompletion=completion.targets,
        help="Calibrate under the rules of a runtime: onnxruntime, openvino, torch, ...; clcalib targets lists them.",
    ),
]
EdgeBitsOption = Annotated[
    str | None,
    typer.Option(
        "--first-last-bits",
        rich_help_panel=WIDTHS,
        metavar="N|same",
        help="Width of the first and the last layer; 8 by default.",
    ),
]
UnitPatternOption = Annotated[
    list[str] | None,
    typer.Option(
        "--unit-pattern",
        rich_help_panel=WIDTHS,
        metavar="GLOB",
        help="Make each module of these names one unit: 'layer1.*'.",
    ),
]

WorkersOption = Annotated[
    str | None,
    typer.Option(
        "--workers",
        rich_help_panel=WORKERS,
        metavar="N|env",
        help="Share the run among N processes: of this machine, or one a call with --rank; env: as torchrun says.",
    ),
]
ShardsOption = Annotated[
    int | None,
    typer.Option(
        "--shards",
        rich_help_panel=WORKERS,
        metavar="N",
        help="Parts of the images, dealt to the workers; the result depends on it. 4 with --workers, or else 1.",
    ),
]
RendezvousOption = Annotated[
    str | None,
    typer.Option(
        "--rendezvous",
        rich_help_panel=WORKERS,
        metavar="HOST:PORT",
        help="Where calls on several machines meet: an address of the one with --rank 0, and a free port there.",
    ),
]
RankOption = Annotated[
    int | None,
    typer.Option("--rank", rich_help_panel=WORKERS, metavar="I", help="Which worker this call is, from 0."),
]
WaitOption = Annotated[
    float | None,
    typer.Option(
        "--wait",
        rich_help_panel=WORKERS,
        metavar="SECONDS",
        help="How long to wait for a machine that is missing, at the start or later; 300 by default.",
    ),
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


def model_flags(
    entry: str | None, weights: Path | None, *, is_pretrained: bool, submodule: str | None = None
) -> dict[str, Any]:
    """The keys of ``[model]`` that the flags stand for.

    Raises:
        ArgumentError: weights are given in two ways.
    """
    if is_pretrained and weights is not None:
        remedy = "leave one of the two out"
        raise ArgumentError("--weights, --pretrained", "a file of weights, or the published ones", "both", remedy)
    return {"entry": entry, "weights": PRETRAINED if is_pretrained else weights, "submodule": submodule}


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


def quantization_flags(
    bits: Sequence[str] | None,
    edge_bits: str | None,
    unit_patterns: Sequence[str] | None,
    weight_bits: int | None = None,
    activation_bits: int | None = None,
    target: str | None = None,
) -> dict[str, Any]:
    """The keys of ``[quantization]`` that the flags of widths stand for, but for the patterns.

    Raises:
        ArgumentError: two flags name different widths for the same thing.
    """
    plain = [text for text in bits or () if "=" not in text]
    if len(plain) > 1:
        expected, remedy = "one pair of widths for all layers", "give the others a pattern, as in 'layer4.*=W4A8'"
        raise ArgumentError("--bits", expected, " and ".join(plain), remedy)
    weights, activations = split_bits(plain[0] if plain else None)
    is_number = edge_bits is not None and edge_bits.strip().isdecimal()
    return {
        "weights": _one_width("--weight-bits", weight_bits, weights, plain),
        "activations": _one_width("--activation-bits", activation_bits, activations, plain),
        "first_last_bits": int(edge_bits) if edge_bits is not None and is_number else edge_bits,
        "unit_patterns": list(unit_patterns) if unit_patterns else None,
        "target": target,
    }


def _one_width(flag: str, own: int | None, of_both: int | None, plain: Sequence[str]) -> int | None:
    """The width of a flag of its own, or the one in ``--bits``; where both are given, they must agree."""
    if own is None or of_both is None or own == of_both:
        return of_both if own is None else own
    raise ArgumentError(flag, f"{of_both}, as --bits {plain[0]} says", own, "leave one of the two out")


def with_patterns(table: dict[str, Any], bits: Sequence[str] | None, floats: Sequence[str] | None) -> dict[str, Any]:
    """Add ``--bits PATTERN=WIDTHS`` and ``--float PATTERN`` behind the overrides of the table, so that they win.

    Raises:
        ArgumentError: there is no pattern, or no widths.
    """
    given_here = [text.rpartition("=")[::2] for text in bits or () if "=" in text]
    given_here += [(pattern, FLOAT) for pattern in floats or ()]
    if not given_here:
        return table
    if any(not pattern.strip() for pattern in floats or ()):
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
