"""``clcalib init``: a TOML for a network, with every key explained and values that fit it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from clcalib.cli import completion
from clcalib.cli.given import ModelFlags
from clcalib.cli.options import EvaluationOption, PretrainedOption, WeightsOption

EXAMPLES = (
    "[bold]Examples[/bold]\n\n"
    "clcalib init torchvision:resnet18 --images images/\n\n"
    "clcalib init timm:deit_tiny_patch16_224 --weights deit.safetensors --images images/ --out deit.toml\n\n"
    "clcalib init my_network.py:build --weights my.safetensors --images train.txt --evaluation test.txt"
)


def init(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL",
            autocompletion=completion.models,
            help="torchvision:NAME, timm:NAME, package.module:callable or path/to/file.py:callable.",
        ),
    ],
    *,
    weights: WeightsOption = None,
    pretrained: PretrainedOption = False,
    images: Annotated[
        Path | None, typer.Option("--images", metavar="PATH", help="Calibration images; images by default.")
    ] = None,
    evaluation: EvaluationOption = None,
    out: Annotated[Path, typer.Option("--out", metavar="FILE", help="The file to write.")] = Path("run.toml"),
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Write over a file that is there.")] = False,
) -> None:
    """Write a commented TOML for a network; clcalib quantize takes it as it is.

    Of a network by name, the size and the colours of images are those of its
    own configuration.
    """
    from clcalib.cli.actions.init import write_starter

    write_starter(model, ModelFlags(model, weights, pretrained), images, evaluation, out, is_overwriting=overwrite)
