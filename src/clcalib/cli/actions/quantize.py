"""``clcalib quantize``: the main job, from a trained network and images to a quantized network and a table."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from signal import SIGINT
from typing import Any

from rich.console import Console
from rich.text import Text

from clcalib.calibrate.observer import SilentObserver
from clcalib.calibrate.recipes import RECIPES
from clcalib.cli.flags import (
    collect,
    collect_saved,
    model_flags,
    one_config,
    quantization_flags,
    refuse_with_resume,
    split_names,
    with_patterns,
)
from clcalib.cli.given import RunFlags, WorkerFlags
from clcalib.cli.messages import new_console
from clcalib.cli.progress import observer_for
from clcalib.cli.results import (
    estimate_json,
    result_line,
    show_estimate,
    show_json,
    show_record,
    transform_line,
)
from clcalib.cli.workers import check_team, run_on_workers, with_shards
from clcalib.config import build
from clcalib.config_problems import options_model
from clcalib.config_sections import RunConfig
from clcalib.durable.stop import Request, stopping_politely
from clcalib.errors import ClcalibWarning, StoppedError
from clcalib.output import is_finished
from clcalib.pipeline import RECORD_FILE
from clcalib.report.record import RunRecord, read_record
from clcalib.run import dry_run, run


def quantize_as(
    configs: tuple[Path | None, Path | None],
    flags: RunFlags,
    team: WorkerFlags,
    *,
    resume: Path | None,
    is_dry: bool,
    is_quiet: bool,
    is_json: bool,
) -> None:
    """Carry out a run, or go on with one, and print what came of it.

    ``configs`` is the configuration file, without and with an option; all else is as it was given.
    """
    place = team.place()
    table, source = _table_of(one_config(*configs), flags, resume, is_dry=is_dry)
    table = with_shards(table, place, is_resumed=resume is not None, is_by_units=team.is_by_units)
    is_without_output = is_dry or (place is not None and not place.is_first)
    config = build(RunConfig, _with_any_folder(table) if is_without_output else table, source)
    if place is not None:
        check_team(config, place, is_by_units=team.is_by_units)
    log = new_console(is_stderr=True)
    console = log if is_json else new_console()
    if not is_quiet:
        log.print(transform_line(config.model, config.data, config.data.calibration), soft_wrap=True)
    if is_dry:
        workers = place.workers if place is not None and team.is_by_units else None
        _try_out(config, console, log, workers, is_json=is_json)
        return
    record: RunRecord | None
    if resume is not None and is_finished(config.run.out) and (place is None or place.is_alone):
        log.print(Text(f"the run in {config.run.out} is finished; nothing is left to do"), soft_wrap=True)
        record = read_record(config.run.out / RECORD_FILE)
    elif place is not None and place.workers > 1:
        known = {"is_resumed": resume is not None, "is_quiet": is_quiet, "is_json": is_json}
        record = run_on_workers(config, place, log, **known, is_by_units=team.is_by_units, wait=team.wait)
    else:
        record = _run(config, console, log, is_resumed=resume is not None, is_quiet=is_quiet)
    if record is not None:
        _show(record, config.run.out, console, is_quiet=is_quiet, is_json=is_json)


def _table_of(config: Path | None, flags: RunFlags, resume: Path | None, *, is_dry: bool) -> tuple[dict[str, Any], str]:
    """The configuration that the flags stand for, and what errors call it."""
    sections = {"model": model_flags(flags.network), "quantization": quantization_flags(flags.widths)}
    sections |= {name: dict(values) for name, values in flags.sections.items()}
    sections["data"]["augment"] = split_names(sections["data"]["augment"])
    if resume is not None:
        run = sections["run"]
        refuse_with_resume(config, run["out"], is_dry=is_dry, overwrite=bool(run["overwrite"]))
        run |= {"out": resume, "overwrite": None}
        table, source = collect_saved(resume, flags.settings, sections)
    else:
        table, source = collect(config, flags.settings, sections)
    table = _with_fitting_options(table, sections["recipe"]["name"], sections["recipe"]["steps"])
    for section, is_wanted in flags.additions.items():
        table = _with_section(table, section, is_wanted)
    return with_patterns(table, flags.widths), source


def _try_out(config: RunConfig, console: Console, log: Console, workers: int | None, *, is_json: bool) -> None:
    """Print what the run would take, and what each of the workers that its units are dealt to."""
    log.print("a dry run: a few steps on few images; its errors are not those of the run", soft_wrap=True)
    with observer_for(console, log) as observer:
        found = dry_run(config, observer, workers)
    if is_json:
        show_json(estimate_json(found))
    else:
        show_estimate(found, None if config.target is None else config.target.rounds, console)


def _show(record: RunRecord, out: Path, console: Console, *, is_quiet: bool, is_json: bool) -> None:
    if is_json:
        show_json(record)
    elif is_quiet:
        console.print(Text(result_line(record, out)), soft_wrap=True)
    else:
        show_record(record, out, console)


def _run(config: RunConfig, console: Console, log: Console, *, is_resumed: bool, is_quiet: bool) -> RunRecord:
    """The run; a signal becomes an error with its exit code, when what is finished is saved."""
    request = Request()
    try:
        with stopping_politely() as request:
            if is_quiet:
                return run(config, SilentObserver(), is_resumed=is_resumed)
            with observer_for(console, log) as observer:
                return run(config, observer, is_resumed=is_resumed)
    except KeyboardInterrupt as error:
        raise StoppedError(
            str(error) or "interrupted; no result was written", 128 + (request.signal or SIGINT)
        ) from None


def _with_any_folder(table: dict[str, Any]) -> dict[str, Any]:
    """A dry run needs no output folder; one that is named is not looked at."""
    section = table.get("run", {})
    return {**table, "run": {"out": "nowhere", **section}} if isinstance(section, Mapping) else table


def _with_section(table: dict[str, Any], section: str, is_wanted: bool | None) -> dict[str, Any]:
    """``--contrastive`` asks for the section ``[contrastive]``, ``--no-contrastive`` takes it away; None: neither."""
    if is_wanted is None:
        return table
    return {**table, section: table.get(section) or {} if is_wanted else None}


def _with_fitting_options(table: dict[str, Any], recipe: str | None, steps: int | None) -> dict[str, Any]:
    """Where ``--recipe`` replaces the TOML's recipe, leave out the TOML's options that only the other one has."""
    section = table.get("recipe")
    if recipe not in RECIPES or not isinstance(section, Mapping):
        return table
    valid = {"name", *options_model(RECIPES[recipe]).model_fields} | ({"steps"} if steps is not None else set())
    odd = [key for key in section if key not in valid]
    if odd:
        warnings.warn(f"{recipe} has no option {', '.join(odd)}: left out of [recipe]", ClcalibWarning, stacklevel=2)
    return {**table, "recipe": {key: value for key, value in section.items() if key in valid}}
