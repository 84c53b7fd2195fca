"""``clcalib describe``: the units of a network, before anything is done to it."""

from __future__ import annotations

from typing import Annotated, Literal

import torch
import typer
from rich.console import Console
from rich.text import Text

from clcalib.capture.chain import capture
from clcalib.capture.coverage import float_parts
from clcalib.capture.describe import describe as describe_chain
from clcalib.capture.submodule import Part
from clcalib.cli.flags import (
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
    collect,
    one_config,
    quantization_flags,
    split_shape,
    with_patterns,
)
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

EXAMPLES = (
    "[bold]Examples[/bold]\n\n"
    "clcalib describe --model torchvision:resnet18\n\n"
    "clcalib describe --model timm:deit_tiny_patch16_224 --bits W4A8 --target onnxruntime\n\n"
    "clcalib describe --model my_network.py:build --weights my.safetensors --shape 3,32,32 --unit layer\n\n"
    "clcalib describe run.toml --bits W2A4 --bits 'layer4.*=W4A8' --bits @depthwise=W8A8 --float '*.se.*'"
)
_IMAGES = ("example", "calibration")  # what the library calls the images that are made for --shape
_EXAMPLE_IMAGES = 2  # one image would be taken for a fixed batch of one


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
    config = one_config(config, config_file)
    if unit not in ("block", "layer"):
        raise ArgumentError("--unit", "block or layer", repr(unit))
    kind: Literal["block", "layer"] = "block" if unit == "block" else "layer"
    flags = {
        "model": {"entry": model, "weights": weights, "submodule": submodule},
        "quantization": quantization_flags(bits, first_last_bits, unit_pattern, target=target),
    }
    table, source = collect(config, settings, flags)
    parsed = build(ModelConfig, with_patterns(table, bits, float_), source)
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
