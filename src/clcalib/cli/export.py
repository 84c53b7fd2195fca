"""``clcalib export``: the result of a run as a file for its target, checked in its runtime."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from clcalib.cli.flags import (
    EvaluationOption,
    JsonOption,
    ModelOption,
    PretrainedOption,
    SetOption,
    ThreadsOption,
    WeightsOption,
    given,
    model_flags,
)
from clcalib.cli.messages import new_console
from clcalib.cli.results import show_json
from clcalib.config import build
from clcalib.config_sections import EvaluationConfig
from clcalib.config_sources import over_saved, parse_assignment, saved_config, with_absolute_paths
from clcalib.errors import OutputExistsError
from clcalib.export.checkpoint import saved_target
from clcalib.export.deployed import PAPER
from clcalib.quant.targets import TARGETS
from clcalib.report.deployment_table import deployment_table
from clcalib.run import export

_FILES = " or ".join(dict.fromkeys(target.file for target in TARGETS.values()))
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
        Path | None, typer.Option("--out", metavar="FILE", help=f"The file to write; {_FILES}, in the folder.")
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
    path = out or folder / (saved_target(folder) or PAPER).file
    for file in (path, float_):
        if file is not None and file.exists() and not overwrite:
            raise OutputExistsError(f"{file} exists; name another file, or say --overwrite")
    flags = {
        "model": model_flags(model, weights, is_pretrained=pretrained),
        "data": {"evaluation": evaluation},
        "run": {"threads": threads},
    }
    here = Path.cwd()
    assigned = [with_absolute_paths(parse_assignment(assignment), here) for assignment in settings or ()]
    table = over_saved(saved_config(folder), folder, *assigned, with_absolute_paths(given(flags), here))
    record = export(folder, build(EvaluationConfig, table, str(folder)), path, float_)
    if is_json:
        show_json(record)
    else:
        new_console().print(deployment_table(record))
