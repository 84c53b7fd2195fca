"""What the pages written from ``benchmarks/results`` share: loading a result, and how numbers are shown."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"


def load(name: str) -> dict[str, Any]:
    data: dict[str, Any] = json.loads((RESULTS / f"{name}.json").read_text())
    return data


def spread(row: dict[str, Any] | None) -> str:
    """Mean, deviation and number of seeds; a single seed has no deviation."""
    if row is None:
        return "not run"
    return f"{row['mean']:.2f} (1)" if row["n"] == 1 else f"{row['mean']:.2f} ± {row['deviation']:.2f} ({row['n']})"


def signed(values: list[float]) -> str:
    return ", ".join(f"{value:+.2f}" for value in values) or "-"


def not_measured(command: str) -> str:
    return f"*Not measured yet: `python benchmarks/{command}` measures it, `python benchmarks/readme.py` puts it here.*"
