"""What a run leaves on the terminal: its tables, one line, or JSON; and how its images were made ready."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from rich.console import Console
from rich.text import Text

from clcalib.cli.estimates import estimate_table, estimate_text
from clcalib.config_sections import ImagesSection, ModelSection
from clcalib.config_transform import is_own
from clcalib.estimate import Estimate
from clcalib.report.deployment_table import deployment_table
from clcalib.report.formats import percent
from clcalib.report.record import RunRecord
from clcalib.report.tables import (
    bits_name,
    budget_table,
    detection_table,
    method_name,
    summary_table,
    target_table,
    unit_table,
)

_MAYBE_FLOATS = (".safetensors", ".npz")


def show_json(value: object) -> None:
    """Print one JSON document on stdout."""
    sys.stdout.write(json.dumps(plain(value), indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def plain(value: object) -> Any:
    """Dataclasses, pydantic models and paths as what JSON has."""
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): plain(each) for key, each in value.items()}
    if isinstance(value, tuple | list | set | frozenset):
        return [plain(each) for each in value]
    return value if value is None or isinstance(value, bool | int | float | str) else str(value)


def transform_line(model: ModelSection | None, images: ImagesSection, source: Path | None) -> Text:
    """One line on how images are made ready, and who says so."""
    transform = images.transform()
    whose = ""
    if model is not None and is_own(transform, {"model": model.model_dump(mode="json")}):
        whose = f", as {model.entry} itself says"
    where = ", where they are pixels" if source is not None and source.suffix.lower() in _MAYBE_FLOATS else ""
    return Text.assemble(("images: ", "bold"), f"{transform.describe()}{where}{whose}")


def result_line(record: RunRecord, out: Path) -> str:
    """The result on one line, for ``--quiet``."""
    parts = [f"{method_name(record)} {bits_name(record)}"]
    if record.quantized_top1 is not None:
        parts.append(f"top-1 {percent(record.quantized_top1)} % (float {percent(record.float_top1)} %)")
    if record.agreement is not None:
        parts.append(f"agreement {percent(record.agreement)} %")
    if record.detection is not None and record.detection.matched is not None:
        parts.append(f"boxes found {percent(record.detection.matched)} %")
    return f"{out}: {', '.join(parts)}"


def show_estimate(found: Estimate, rounds: int | None, console: Console) -> None:
    """What a dry run found."""
    console.print()
    if found.budget is not None:
        console.print(budget_table(found.budget))
        console.print()
    console.print(estimate_table(found))
    console.print()
    console.print(estimate_text(found, rounds), soft_wrap=False)


def estimate_json(found: Estimate) -> dict[str, Any]:
    """The same for a program."""
    return {
        "seconds": found.seconds,
        "seconds_per_stage": dict(found.seconds_per_stage),
        "units": plain(found.units),
        "peak_memory_bytes": found.peak_memory_bytes,
        "stored_bytes": found.stored_bytes,
        "spilled_bytes": found.spilled_bytes,
        "disk_bytes": found.disk_bytes,
        "float_layers": list(found.float_layers),
        "float_operators": dict(found.float_operators),
        "budget": plain(found.budget),
        "plan": [{**plain(row), "total": row.total} for row in found.plan],
        "warnings": list(found.warnings),
    }


def show_record(record: RunRecord, out: Path, console: Console) -> None:
    """All tables of a run, and what lies in its folder."""
    console.print()
    if record.units and record.steps_per_unit:
        console.print(unit_table(record))
        console.print()
    if record.detection is not None:
        found = record.detection
        rows = [("nearest", found.nearest_matched, found.nearest_overlap)] if record.recipe != "nearest" else []
        rows.append((method_name(record), found.matched, found.overlap))
        console.print(detection_table(rows, found.detections, found.score_threshold))
        console.print()
    if record.budget is not None:
        console.print(budget_table(record.budget))
        console.print()
    if record.deployment is not None:
        console.print(deployment_table(record.deployment))
        console.print()
    if record.target is not None:
        console.print(target_table(record.target))
        console.print()
    console.print(summary_table([record]))
    console.print()
    for path in sorted(path for path in out.iterdir() if not path.name.startswith(".")):
        console.print(Text(str(path)), soft_wrap=True)
