"""``clcalib report``: one page about a run, from the files in its folder."""

from __future__ import annotations

from pathlib import Path

from rich.text import Text

from clcalib.cli.flags import saved_table
from clcalib.cli.given import FlagsOverSaved
from clcalib.cli.messages import new_console
from clcalib.cli.results import show_json
from clcalib.config import build
from clcalib.config_sections import EvaluationConfig
from clcalib.errors import ArgumentError
from clcalib.report.formats import short
from clcalib.report.page.render import write_report
from clcalib.report.page.sources import RunFolder
from clcalib.reporting import gather_evidence
from clcalib.run import evaluation_images, limited_threads


def write_page(folder: Path, flags: FlagsOverSaved, out: Path | None, *, is_gathered: bool, is_json: bool) -> None:
    """Write the page, of what the folder has or what is gathered now, and print where it is.

    Raises:
        ArgumentError: flags make no sense without gathering.
    """
    run = RunFolder.read(folder)
    if is_gathered or flags.evaluation is not None:
        config = build(EvaluationConfig, saved_table(folder, flags), str(folder))
        with limited_threads(config.run.threads):
            gather_evidence(folder, config, run.record, evaluation_images(config))
    elif flags.model.entry is not None or flags.model.weights is not None or flags.settings:
        got = "--model, --weights or --set alone"
        raise ArgumentError("--gather", "it beside them, or --evaluation", got, "the page is made of files without it")
    path = write_report(folder, out)
    size = path.stat().st_size
    if is_json:
        show_json({"page": path, "bytes": size})
    else:
        new_console().print(Text(f"{path}  {short(size)}B"), soft_wrap=True)
