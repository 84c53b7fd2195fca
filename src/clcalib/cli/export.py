"""``clcalib export``: the result of a run as a file for its target, checked in its runtime."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from clcalib.cli.given import FlagsOverSaved, ModelFlags
from clcalib.cli.options import (
    EvaluationOption,
    JsonOption,
    ModelOption,
    PretrainedOption,
    SetOption,
    ThreadsOption,
    WeightsOption,
)

EXAMPLES = (
    "[bold]Examples[/bold]\n\n"
    "clcalib export runs/w8a8\n\n"
    "clcalib export runs/w8a8 --out deployed.onnx --float float.onnx\n\n"
    "clcalib export runs/w8a8 --model net.py:build --weights net.safetensors --evaluation images/"
)


def export_command(
    folder: Annotated[Path, typer.Argument(metavar="OUT", help="The output folder of a run.")],
    *,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            metavar="FILE",
            help="The file to write; in the folder by default, named as its target says: model.onnx, ...",
        ),
    ] = None,
    float_: Annotated[
        Path | None, typer.Option("--float", metavar="FILE", help="Write the float network too, for clcalib bench.")
    ] = None,
    model: ModelOption = None,
    weights: WeightsOption = None,
    pretrained: PretrainedOption = False,
    evaluation: EvaluationOption = None,
    settings: SetOption = None,
    threads: ThreadsOption = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Write over files that are there.")] = False,
    is_json: JsonOption = False,
) -> None:
    """Write the result of a run as a file for its target, and check it in the target's runtime.

    A run with --target has written the file already, an ONNX graph or, for
    torch, a program of torch.export; this writes it again, elsewhere, or
    checks it on other images.  A run
    without a target gives a reference graph that computes in float what was
    simulated: quantize again with --target to have integer
    kernels do the work.

    Compared are the codes at every quantizer, on 512 evaluation images: a
    kernel may round one code up or down, and more is told as a defect.
    """
    from clcalib.cli.actions.export import write_file

    flags = FlagsOverSaved(ModelFlags(model, weights, pretrained), evaluation, settings, threads)
    write_file(folder, flags, out, float_, is_overwriting=overwrite, is_json=is_json)
