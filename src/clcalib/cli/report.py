"""``clcalib report``: one page about a run, from the files in its folder."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.text import Text

from clcalib.cli.flags import EvaluationOption, JsonOption, ModelOption, SetOption, ThreadsOption, WeightsOption, given
from clcalib.cli.messages import new_console
from clcalib.cli.results import show_json
from clcalib.config import build
from clcalib.config_sections import EvaluationConfig
from clcalib.config_sources import over_saved, parse_assignment, saved_config, with_absolute_paths
from clcalib.errors import ArgumentError
from clcalib.report.page.render import REPORT_FILE, write_report
from clcalib.report.page.sources import RunFolder
from clcalib.report.tables import short
from clcalib.reporting import gather_evidence
from clcalib.run import evaluation_images, limited_threads

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
        Path | None, typer.Option("--out", metavar="FILE", help=f"The page; by default {REPORT_FILE} in the folder.")
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
    run = RunFolder.read(folder)
    if is_gathered or evaluation is not None:
        flags: dict[str, Any] = {
            "model": {"entry": model, "weights": weights},
            "data": {"evaluation": evaluation},
            "run": {"threads": threads},
        }
        here = Path.cwd()
        assigned = [with_absolute_paths(parse_assignment(assignment), here) for assignment in settings or ()]
        table = over_saved(saved_config(folder), folder, *assigned, with_absolute_paths(given(flags), here))
        config = build(EvaluationConfig, table, str(folder))
        with limited_threads(config.run.threads):
            gather_evidence(folder, config, run.record, evaluation_images(config))
    elif model is not None or weights is not None or settings:
        got = "--model, --weights or --set alone"
        raise ArgumentError("--gather", "it beside them, or --evaluation", got, "the page is made of files without it")
    path = write_report(folder, out)
    size = path.stat().st_size
    if is_json:
        show_json({"page": path, "bytes": size})
    else:
        new_console().print(Text(f"{path}  {short(size)}B"), soft_wrap=True)
