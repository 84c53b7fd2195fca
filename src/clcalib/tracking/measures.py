"""From the record of a run to the numbers, settings and files that trackers keep."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from clcalib.report.record import BeforeAfter, RunRecord, UnitRecord
from clcalib.report.trace import TRACE_FILE, RunTrace

Setting = str | int | float | bool

_SETTINGS = (
    *("recipe", "weight_bits", "activation_bits", "setting", "seed", "steps_per_unit", "calibration_images"),
    *("evaluation_images", "device", "precision", "cache_precision", "kernels", "threads", "runtime_target"),
)
_RESULTS = (
    *("float_top1", "nearest_top1", "quantized_top1", "agreement", "nearest_agreement"),
    *("seconds", "peak_memory_bytes", "stored_bytes", "spilled_bytes"),
)
_REFUSED = re.compile(r"[^\w\-./ :]")


def clean(name: str) -> str:
    """A name without the characters that MLflow refuses in one.

    Example:
        >>> clean("loss/layer1[0]/Lp")
        'loss/layer1_0_/Lp'
    """
    return _REFUSED.sub("_", name)


def unit_numbers(unit: UnitRecord) -> dict[str, float]:
    """What was measured on a finished unit; its errors on calibration images are told when it is finished."""
    found = {
        "sqnr_db": unit.sqnr_db.calibration,
        "sqnr_db_held_out": unit.sqnr_db.held_out,
        **_pair("error_held_out", unit.reconstruction_error.held_out),
    }
    if (bound := unit.mutual_information_bound) is not None:
        found |= {**_pair("bound", bound.calibration), **_pair("bound_held_out", bound.held_out)}
    return {f"units/{name}": value for name, value in found.items() if value is not None}


def _pair(name: str, values: BeforeAfter | None) -> dict[str, float]:
    return {} if values is None else {f"{name}_before": values.before, f"{name}_after": values.after}


def result_numbers(record: RunRecord) -> dict[str, float]:
    """Accuracies (fractions), time and memory, as far as they were measured."""
    found: dict[str, float | None] = {name: getattr(record, name) for name in _RESULTS}
    if record.deployment is not None:
        names = ("top1_simulated", "top1_runtime", "largest_output_difference", "file_bytes")
        found |= {f"deployment_{name}": getattr(record.deployment, name) for name in names}
    if record.detection is not None:
        names = ("matched", "overlap", "nearest_matched", "nearest_overlap")
        found |= {f"detection_{name}": getattr(record.detection, name) for name in names}
    return {f"result/{name}": float(value) for name, value in found.items() if value is not None}


def settings_of(record: RunRecord) -> dict[str, Setting]:
    """The settings that a record knows."""
    own = {name: value for name in _SETTINGS if (value := getattr(record, name)) is not None}
    return own | flattened({} if record.contrastive is None else {"contrastive": record.contrastive})


def flattened(table: Mapping[str, Any], prefix: str = "") -> dict[str, Setting]:
    """A table of tables as one of plain values, without what is not set.

    Example:
        >>> flattened({"run": {"seed": 1, "threads": None}, "data": {"mean": [0.5, 0.5]}})
        {'run.seed': 1, 'data.mean': '[0.5, 0.5]'}
    """
    found: dict[str, Setting] = {}
    for key, value in table.items():
        if isinstance(value, Mapping):
            found |= flattened(value, f"{prefix}{key}.")
        elif value is not None:
            found[f"{prefix}{key}"] = value if isinstance(value, str | int | float | bool) else str(value)
    return found


def texts_of(record: RunRecord, trace: RunTrace | None) -> dict[str, str]:
    """The files that a run leaves, by name."""
    files = {"run.json": record.model_dump_json(indent=2)}
    return files if trace is None else {**files, TRACE_FILE: trace.model_dump_json()}
