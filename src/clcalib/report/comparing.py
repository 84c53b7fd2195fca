"""Several runs side by side: what they were given, what differs, and what each is worth beside the first."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from clcalib.errors import ArgumentError
from clcalib.report.page.headline import measured
from clcalib.report.page.sources import RunFolder
from clcalib.report.pairing import PairedDifference, paired_difference
from clcalib.report.record import RunRecord
from clcalib.report.tables import bits_name, method_name

MISSING = "not set"
# Where the result is, and what the record tells too.
_TOLD = {
    "run.out", "run.overwrite", "run.seed", "run.device", "run.threads", "run.precision", "recipe.name", "recipe.steps",
    "quantization.weights", "quantization.activations", "quantization.target", "quantization.setting",
    "model.submodule",
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class ComparedRun:
    """One run beside the first.

    Attributes:
        name: its folder as it was given.
        measure: what the values are of; floating, value: of the float network and of the result, or None.
        drop: what was lost of the float network's, in percentage points, or None.
        paired: the difference to the first run on the same images, or None; unpaired says why there is none.
        doubts: why its figures cannot be compared with those of the first run; empty where they can.
    """

    name: str
    widths: str
    method: str
    measure: str
    floating: float | None
    value: float | None
    drop: float | None
    agreement: float | None
    deployed: float | None
    weights_bytes: int | None
    file_bytes: int | None
    seconds: float
    paired: PairedDifference | None
    unpaired: str
    doubts: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Setting:
    """A setting that differs: its name, and its value in each run."""

    name: str
    values: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Runs in the order in which they were given, what differs, and the folders that they were read from."""

    runs: tuple[ComparedRun, ...]
    differing: tuple[Setting, ...]
    folders: tuple[RunFolder, ...]

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        return {
            "runs": [dataclasses.asdict(run) for run in self.runs],
            "differing": {setting.name: list(setting.values) for setting in self.differing},
        }


def compare_runs(folders: Sequence[str | Path]) -> Comparison:
    """Read runs and put them side by side; the first is the one that the others are compared with.

    Raises:
        ArgumentError: there are fewer than two, or one is no folder of a run.
        CheckpointError: a file is damaged; the message names it.
    """
    if len(folders) < 2:
        remedy = "name another one, or use `clcalib report` for a single run"
        raise ArgumentError("OUT", "at least two output folders of runs", len(folders), remedy)
    read = tuple(RunFolder.read(folder) for folder in folders)
    runs = tuple(_compared(str(path), run, read[0]) for path, run in zip(folders, read, strict=True))
    return Comparison(runs, differing_settings(read), read)


def differing_settings(runs: Sequence[RunFolder]) -> tuple[Setting, ...]:
    """The settings that are not the same in all runs, each with its values."""
    tables = [settings_of(run) for run in runs]
    names = dict.fromkeys(name for table in tables for name in table)
    rows = [Setting(name, tuple(table.get(name, MISSING) for table in tables)) for name in names]
    return tuple(row for row in rows if len(set(row.values)) > 1)


def settings_of(run: RunFolder) -> dict[str, str]:
    """What a run was given, by name: of its record, and where it has one, of its configuration."""
    record = run.record
    own = {
        "recipe": record.recipe, "widths": bits_name(record), "steps for each unit": str(record.steps_per_unit),
        "seed": str(record.seed), "edge layers": record.setting, "target": record.runtime_target or "none",
        "submodule": record.submodule or "none", "calibration images": str(record.calibration_images),
        "digest of the calibration images": record.calibration_digest[:12],
        "evaluation images": str(record.evaluation_images),
        "digest of the evaluation images": (record.evaluation_digest or "none")[:12],
        "digest of the weights": record.model_digest[:12], "device": record.device, "threads": str(record.threads),
        "precision": record.precision, "kernels": record.kernels,
        **{f"version of {name}": version for name, version in record.versions.items()},
    }  # fmt: skip
    for section, table in run.config.items():
        named = {f"{section}.{key}": value for key, value in table.items() if value is not None}
        own |= {name: _text(value) for name, value in named.items() if name not in _TOLD}
    return own


def _compared(name: str, run: RunFolder, first: RunFolder) -> ComparedRun:
    record, base = run.record, first.record
    measure, values = measured(record)
    found = {label: value for label, value, _ in values}
    floating, value = found.get("float"), found.get(method_name(record))
    paired = None if run is first else paired_difference(_predictions(first), _predictions(run))
    deployed = record.deployment
    return ComparedRun(
        name=name,
        widths=bits_name(record),
        method=method_name(record),
        measure=measure,
        floating=floating,
        value=value,
        drop=None if floating is None or value is None else 100 * (floating - value),
        agreement=record.agreement,
        deployed=None if deployed is None else deployed.top1_runtime,
        weights_bytes=run.weights_bytes,
        file_bytes=None if deployed is None else deployed.file_bytes,
        seconds=record.seconds,
        paired=paired,
        unpaired="" if run is first or paired is not None else _why_unpaired(first, run),
        doubts=() if run is first else tuple(_doubts(base, record)),
    )


def _predictions(run: RunFolder) -> Any:
    return None if run.evidence is None else run.evidence.predictions


def _why_unpaired(first: RunFolder, second: RunFolder) -> str:
    digests = {run.record.evaluation_digest for run in (first, second)}
    if None in digests:
        return "not every run had evaluation images"
    if len(digests) > 1:
        return "other evaluation images"
    return "predictions were not kept; clcalib report --gather keeps them"


def _doubts(first: RunRecord, other: RunRecord) -> list[str]:
    found = []
    if other.model_digest != first.model_digest:
        found.append("another network")
    if other.evaluation_digest != first.evaluation_digest:
        found.append("other evaluation images")
    if other.submodule != first.submodule:
        found.append("another part of the model")
    return found


def _text(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, sort_keys=True)
