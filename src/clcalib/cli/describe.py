"""``clcalib describe``: the units of a network, before anything is done to it."""

from __future__ import annotations

from typing import Annotated

import typer

from clcalib.cli.given import ModelFlags, WidthFlags
from clcalib.cli.options import (
    BitsOption,
    ConfigArgument,
    ConfigOption,
    EdgeBitsOption,
    FloatOption,
    JsonOption,
    ModelOption,
    SetOption,
    SubmoduleOption,
    TargetOption,
    UnitPatternOption,
    WeightsOption,
)

EXAMPLES = (
    "[bold]Examples[/bold]\n\n"
    "clcalib describe --model torchvision:resnet18\n\n"
    "clcalib describe --model timm:deit_tiny_patch16_224 --bits W4A8 --target onnxruntime\n\n"
    "clcalib describe --model my_network.py:build --weights my.safetensors --shape 3,32,32 --unit layer\n\n"
    "clcalib describe run.toml --bits W2A4 --bits 'layer4.*=W4A8' --bits @depthwise=W8A8 --float '*.se.*'"
)


def describe(
    config: ConfigArgument = None,
    *,
    config_file: ConfigOption = None,
    model: ModelOption = None,
    weights: WeightsOption = None,
    submodule: SubmoduleOption = None,
    shape: Annotated[
        str | None,
        typer.Option(
            "--shape", metavar="C,H,W", help="Shape of one image; a TOML with images, or a network by name, needs none."
        ),
    ] = None,
    unit: Annotated[str, typer.Option("--unit", metavar="block|layer", help="What is one unit.")] = "block",
    unit_pattern: UnitPatternOption = None,
    bits: BitsOption = None,
    float_: FloatOption = None,
    first_last_bits: EdgeBitsOption = None,
    target: TargetOption = None,
    settings: SetOption = None,
    is_json: JsonOption = False,
) -> None:
    """Print the units that a network is cut into, the widths that every layer would get and why, and what stays float.

    Units are what is reconstructed one after the other.  Patterns of --bits
    and --float are globs of the layer names in the second table, or @ and a
    word of a layer's type there (@depthwise, @linear); the last one that fits
    wins, over the 8 bits of the first and last layer too.  clcalib quantize
    takes the same flags.

    With --target the file is written, loaded and run once with quick ranges,
    so that what the runtime refuses is told here.
    """
    from clcalib.cli.actions.describe import show_units

    widths = WidthFlags(bits, float_, first_last_bits, unit_pattern, target)
    network = ModelFlags(model, weights, submodule=submodule)
    show_units((config, config_file), network, widths, settings, shape=shape, unit=unit, is_json=is_json)
