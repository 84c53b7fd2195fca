"""``clcalib describe``: the units of a network, before anything is done to it."""

from __future__ import annotations

from typing import Annotated, Literal

import torch
import typer
from rich.console import Console

from clcalib.capture.chain import capture
from clcalib.capture.describe import describe as describe_chain
from clcalib.capture.submodule import Part
from clcalib.cli.flags import (
    ConfigArgument,
    ModelOption,
    SetOption,
    SubmoduleOption,
    WeightsOption,
    collect,
    split_shape,
)
from clcalib.config import ModelConfig, build
from clcalib.data.sources import load_calibration
from clcalib.errors import ArgumentError
from clcalib.model_source import load_model
from clcalib.report.tables import description_table

EXAMPLES = (
    "[bold]Examples[/bold]\n\n"
    "clcalib describe --model torchvision.models:resnet18 --shape 3,224,224\n\n"
    "clcalib describe --model my_network.py:build --weights my.safetensors --shape 3,32,32 --unit layer\n\n"
    "clcalib describe run.toml"
)
_EXAMPLE_IMAGES = 2  # one image would be taken for a fixed batch of one


def describe(
    config: ConfigArgument = None,
    *,
    model: ModelOption = None,
    weights: WeightsOption = None,
    submodule: SubmoduleOption = None,
    shape: Annotated[
        str | None, typer.Option("--shape", metavar="C,H,W", help="Shape of one image; a TOML with images needs none.")
    ] = None,
    unit: Annotated[str, typer.Option("--unit", metavar="block|layer", help="What is one unit.")] = "block",
    settings: SetOption = None,
) -> None:
    """Print the units that a network is cut into: what is reconstructed one after the other.

    Overrides of widths in a configuration refer to layers by name (layer1.0.conv1); --unit layer shows them.
    """
    if unit not in ("block", "layer"):
        raise ArgumentError("--unit", "block or layer", repr(unit))
    kind: Literal["block", "layer"] = "block" if unit == "block" else "layer"
    table, source = collect(config, settings, {"model": {"entry": model, "weights": weights, "submodule": submodule}})
    parsed = build(ModelConfig, table, source)
    size = _image_shape(shape, parsed)
    network, images = load_model(parsed.model), torch.zeros(_EXAMPLE_IMAGES, *size)
    if parsed.model.submodule is not None:
        part, images = Part.of(network, parsed.model.submodule, images)
        network = part.module
    chain = capture(network, images, unit=kind)
    Console(highlight=False).print(description_table(describe_chain(chain)))


def _image_shape(shape: str | None, config: ModelConfig) -> tuple[int, ...]:
    if shape is not None:
        return split_shape(shape)
    if config.data is None:
        raise ArgumentError("--shape", "the shape of one image, such as 3,32,32", "none")
    images = load_calibration(config.data.calibration, transform=config.data.transform(), count=1).images
    return tuple(images.shape[1:])
