"""``clcalib report``: one page about a run, from the files in its folder."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from clcalib.cli.given import FlagsOverSaved, ModelFlags
from clcalib.cli.options import (
    EvaluationOption,
    JsonOption,
    ModelOption,
    SetOption,
    ThreadsOption,
    WeightsOption,
)

EXAMPLES = (
    "[bold]Examples[/bold]\n\n"
    "clcalib report runs/w4a4\n\n"
    "clcalib report runs/w4a4 --out w4a4.html\n\n"
    "clcalib report runs/w4a4 --evaluation images/\n\n"
    "clcalib report from-python --gather --model net.py:build --weights net.safetensors --evaluation images/"
)


def report_command(
    folder: Annotated[Path, typer.Argument(metavar="OUT", help="The output folder of a run.")],
    *,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="FILE", help="The page; by default report.html in the folder.")
    ] = None,
    is_gathered: Annotated[
        bool, typer.Option("--gather", help="Look at model and images again, for what the folder does not have.")
    ] = False,
    model: ModelOption = None,
    weights: WeightsOption = None,
    evaluation: EvaluationOption = None,
    settings: SetOption = None,
    threads: ThreadsOption = None,
    is_json: JsonOption = False,
) -> None:
    """Write one HTML page about a run, to be read, shown and kept.

    The page holds everything itself: it opens from the disk, needs no
    network and no JavaScript, and prints.  A run leaves one in its folder;
    this writes it again, with a newer version say, or elsewhere.

    Shown are accuracies of float, nearest rounding, result and deployed
    file, what was run, classes and images that changed, widths, units,
    losses, histograms with their grids, a map of features, what stayed in
    float, and the deployment proof.

    Of a folder that lacks report.json (an older one, or one saved from
    Python), only what run.json and trace.json say is shown.  --gather, or
    images given by --evaluation, looks at model and images again; what is
    not given is taken from config.json in the folder.
    """
    from clcalib.cli.actions.report import write_page

    flags = FlagsOverSaved(ModelFlags(model, weights), evaluation, settings, threads)
    write_page(folder, flags, out, is_gathered=is_gathered, is_json=is_json)
