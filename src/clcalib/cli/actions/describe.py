"""``clcalib describe``: the units of a network, before anything is done to it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import torch
from rich.console import Console
from rich.text import Text

from clcalib.capture.chain import capture
from clcalib.capture.coverage import float_parts
from clcalib.capture.describe import describe as describe_chain
from clcalib.capture.submodule import Part
from clcalib.cli.flags import (
    collect,
    model_flags,
    one_config,
    quantization_flags,
    split_shape,
    with_patterns,
)
from clcalib.cli.given import ModelFlags, WidthFlags
from clcalib.cli.messages import new_console
from clcalib.cli.results import show_json
from clcalib.config import build
from clcalib.config_sections import ModelConfig
from clcalib.config_transform import own_transform_of
from clcalib.data.sources import load_calibration
from clcalib.errors import ArgumentError
from clcalib.export.rehearsal import Widths, rehearse
from clcalib.model_source import load_model
from clcalib.named_models import OwnTransform
from clcalib.quant.policy import float_reasons
from clcalib.quant.targets import Target, target_of
from clcalib.report.tables import description_table, float_table, policy_table
from clcalib.unit_records import layer_records

_IMAGES = ("example", "calibration")  # what the library calls the images that are made for --shape
_EXAMPLE_IMAGES = 2  # one image would be taken for a fixed batch of one


def show_units(
    configs: tuple[Path | None, Path | None],
    network_flags: ModelFlags,
    width_flags: WidthFlags,
    settings: Sequence[str] | None,
    *,
    shape: str | None,
    unit: str,
    is_json: bool,
) -> None:
    """Capture the network and print what it is made of.

    ``configs`` is the configuration file, without and with an option; all else is as it was given.

    Raises:
        ArgumentError: a flag is wrong, or what is given does not suffice.
    """
    config = one_config(*configs)
    if unit not in ("block", "layer"):
        raise ArgumentError("--unit", "block or layer", repr(unit))
    kind: Literal["block", "layer"] = "block" if unit == "block" else "layer"
    flags = {"model": model_flags(network_flags), "quantization": quantization_flags(width_flags)}
    table, source = collect(config, settings, flags)
    parsed = build(ModelConfig, with_patterns(table, width_flags), source)
    size = _image_shape(shape, parsed)
    section = parsed.quantization
    network, images = load_model(parsed.model), torch.zeros(_EXAMPLE_IMAGES, *size)
    try:
        if parsed.model.submodule is not None:
            part, images = Part.of(network, parsed.model.submodule, images)
            network = part.module
        chain = capture(network, images, unit=kind, patterns=section.unit_patterns)
    except ArgumentError as error:
        if shape is None or error.argument not in _IMAGES:
            raise
        raise error.under("--shape") from error
    own = target_of(section.target)
    widths = Widths(chain, section.bits(), section.setting, section.layer_overrides(), section.edge_bits())
    policy = widths.policy(own)
    rows, parts = describe_chain(chain), float_parts(chain, float_reasons(policy))
    log = new_console(is_stderr=True)
    _tell_origin(parsed, size, log)
    console = log if is_json else new_console()
    if is_json:
        show_json({"image_shape": size, "units": rows, "policy": layer_records(policy), "float_parts": parts})
    else:
        console.print(description_table(rows))
        console.print()
        console.print(policy_table(policy))
        if parts:
            console.print()
            console.print(float_table(parts))
    if own is not None:
        _rehearse(widths, own, images, console)


def _tell_origin(config: ModelConfig, size: tuple[int, ...], log: Console) -> None:
    """What is taken from a network's own configuration, and that its weights play no part here."""
    own = _own_transform(config)
    if own is None:
        return
    shape = "x".join(map(str, size))
    transform = own.text if own.transform is None else own.transform.describe()
    log.print(Text.assemble(("images: ", "bold"), f"{shape}; {config.model.entry} itself takes: {transform}"))
    if config.model.weights is None:
        told = "random, which does for a description; clcalib quantize is to be given --weights or --pretrained"
        log.print(Text.assemble(("weights: ", "bold"), told))


def _own_transform(config: ModelConfig) -> OwnTransform | None:
    return own_transform_of({"model": config.model.model_dump(mode="json")})


def _rehearse(widths: Widths, target: Target, images: torch.Tensor, console: Console) -> None:
    """Try the target out on noise, which unlike zeros gives every tensor a range."""
    if images.is_floating_point():
        images = torch.randn(images.shape, generator=torch.Generator().manual_seed(0))
    console.print()
    if rehearse(widths, target, images):
        how = "written" if target.runtime is None else "written, loaded and run"
        console.print(f"target {target.name}: {how} just now, on noise and with quick ranges")


def _image_shape(shape: str | None, config: ModelConfig) -> tuple[int, ...]:
    if shape is not None:
        return split_shape(shape)
    if config.data is not None:
        images = load_calibration(config.data.calibration, transform=config.data.transform(), count=1).images
        return tuple(images.shape[1:])
    own = _own_transform(config)
    if own is not None and own.transform is not None and (side := own.transform.crop or own.transform.resize):
        return own.transform.channels, side, side
    raise ArgumentError("--shape", "the shape of one image, such as 3,32,32", "none")
