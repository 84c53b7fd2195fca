"""From a sweep file to the runs that it stands for, each with its key; everything that can be wrong is told first."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path

from pydantic import ValidationError

from clcalib.config import build
from clcalib.config_problems import describe_errors
from clcalib.config_sections import RunConfig
from clcalib.config_sources import Table, merge, parse_assignment, read_toml, with_absolute_paths
from clcalib.errors import ConfigError
from clcalib.sweep.jobs import DATABASE_FILE, Entry, Plan
from clcalib.sweep.key import code_version, data_digest, keys, model_digest
from clcalib.sweep.plan import Cell, SweepFile, absolute, cells, problems_of
from clcalib.sweep.runs import payload_of

_MOST_TOLD = 30
_KEY_LENGTH, _LABEL_LENGTH = 16, 150  # of a key and of a label in the name of a folder


def plan_from(
    path: Path, assignments: Sequence[str], only: Sequence[str], out: Path | None, database: str | None
) -> Plan:
    """``plan_of`` of what the command line was given: the file's path, and ``KEY=VALUE`` for all runs.

    Raises:
        ConfigError: the file, an assignment or a configuration has problems, or nothing is left to run.
    """
    here = Path.cwd()
    settings = [with_absolute_paths(parse_assignment(each), here) for each in assignments]
    return plan_of(read_sweep(path), str(path), settings=settings, only=only, out=out, database=database)


def read_sweep(path: Path) -> SweepFile:
    """Read a sweep file.

    Raises:
        ConfigError: it cannot be read, or has problems; all are told.
    """
    return parse_sweep(absolute(read_toml(path), path.resolve().parent), str(path))


def parse_sweep(table: Table, source: str) -> SweepFile:
    """A sweep file from its table, with absolute paths.

    Raises:
        ConfigError: it has problems; all are told.
    """
    try:
        file = SweepFile.model_validate_json(json.dumps(table, default=str), strict=True)
    except ValidationError as error:
        raise ConfigError(source, describe_errors(SweepFile, error)) from None
    problems = problems_of(file)
    if problems:
        raise ConfigError(source, problems)
    return file


def plan_of(
    file: SweepFile,
    source: str,
    *,
    settings: Sequence[Table] = (),
    only: Sequence[str] = (),
    out: Path | None = None,
    database: str | None = None,
) -> Plan:
    """The runs of a sweep file.

    Args:
        file: see ``read_sweep``.
        source: what errors call it.
        settings: tables of sections that are laid over all runs.
        only: of the runs, those whose label holds one of these; all, where there are none.
        out: in place of the file's.
        database: in place of the file's.

    Raises:
        ConfigError: a configuration has problems, or nothing is left to run.
    """
    folder = Path(os.path.normpath((out or file.sweep.out).absolute()))
    wanted = [cell for cell in cells(file, settings) if not only or _is_meant(cell, only)]
    configurations = _configurations(wanted, folder, source)
    found: dict[str, tuple[int, Entry]] = {}
    digests: dict[str, str] = {}  # a folder of images is looked through once
    for cell, config in zip(wanted, configurations, strict=True):
        model, images = model_digest(config.model), f"{config.data.calibration} {config.data.evaluation}"
        data = digests[images] = digests.get(images) or data_digest(config)
        for seed in cell.seeds:
            if not only or any(word in cell.label(seed) for word in only):
                entry = _entry(cell, config, seed, model, data)
                found.setdefault(entry.key, (seed, entry))
    if not found:
        raise ConfigError(source, [f"no run has any of these in its label: {', '.join(only)}"])
    entries = tuple(entry for _, entry in sorted(found.values(), key=lambda pair: pair[0]))
    address = database or file.sweep.database or str(folder / DATABASE_FILE)
    devices = frozenset(config.run.device for config in configurations)
    return Plan(folder, address, file.sweep.lease, file.sweep.attempts, entries, devices)


def _is_meant(cell: Cell, only: Sequence[str]) -> bool:
    return any(word in cell.label(seed) for word in only for seed in cell.seeds)


def _configurations(wanted: Sequence[Cell], out: Path, source: str) -> list[RunConfig]:
    found: list[RunConfig] = []
    problems: dict[str, list[str]] = {}
    for cell in wanted:
        try:
            found.append(build(RunConfig, merge(cell.table, {"run": {"out": str(out)}}), source))
        except ConfigError as error:
            for problem in error.problems:
                problems.setdefault(problem, []).append(cell.label())
    if problems:
        told = [f"{problem} (in {_some(labels)})" for problem, labels in problems.items()]
        more = [f"and {len(told) - _MOST_TOLD} more"] if len(told) > _MOST_TOLD else []
        raise ConfigError(source, told[:_MOST_TOLD] + more)
    return found


def _some(labels: Sequence[str]) -> str:
    return labels[0] if len(labels) == 1 else f"{labels[0]} and {len(labels) - 1} more"


def _entry(cell: Cell, config: RunConfig, seed: int, model: str, data: str) -> Entry:
    own = config.model_copy(update={"run": config.run.model_copy(update={"seed": seed, "overwrite": True})})
    code = code_version()
    key, group, pair = keys(own, code, model, data)
    folder = own.run.out / "runs" / f"{cell.label(seed).replace('/', '-')[:_LABEL_LENGTH]}-{key[:_KEY_LENGTH]}"
    own = own.model_copy(update={"run": own.run.model_copy(update={"out": folder})})
    return Entry(
        key=key,
        label=cell.label(seed),
        network=cell.network,
        widths=cell.widths,
        recipe=f"{cell.recipe} ({cell.changes})" if cell.changes else cell.recipe,
        contrastive=cell.contrastive,
        seed=seed,
        cell=group,
        pair=pair,
        configuration=own.model_dump_json(),
        code=code,
        model_digest=model,
        data_digest=data,
        payload=payload_of(own, key),
    )
