"""``clcalib export``: the result of a run as a file for its target, checked in its runtime."""

from __future__ import annotations

from pathlib import Path

from clcalib.cli.flags import saved_table
from clcalib.cli.given import FlagsOverSaved
from clcalib.cli.messages import new_console
from clcalib.cli.results import show_json
from clcalib.config import build
from clcalib.config_sections import EvaluationConfig
from clcalib.errors import OutputExistsError
from clcalib.export.checkpoint import saved_target
from clcalib.export.deployed import PAPER
from clcalib.report.deployment_table import deployment_table
from clcalib.run import export


def write_file(
    folder: Path,
    flags: FlagsOverSaved,
    out: Path | None,
    float_out: Path | None,
    *,
    is_overwriting: bool,
    is_json: bool,
) -> None:
    """Write the file, check it, and print what came of it.

    Raises:
        OutputExistsError: a file exists and is not to be overwritten.
    """
    path = out or folder / (saved_target(folder) or PAPER).file
    for file in (path, float_out):
        if file is not None and file.exists() and not is_overwriting:
            raise OutputExistsError(f"{file} exists; name another file, or say --overwrite")
    config = build(EvaluationConfig, saved_table(folder, flags), str(folder))
    record = export(folder, config, path, float_out)
    if is_json:
        show_json(record)
    else:
        new_console().print(deployment_table(record))
