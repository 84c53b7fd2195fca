"""The table of fronts: differences are of the same seeds at the same size, and what was not run is not made up."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

FOLDER = Path(__file__).parent.parent / "benchmarks"
pytestmark = pytest.mark.skipif(not FOLDER.exists(), reason="the benchmarks are not part of this copy")


@pytest.fixture
def page(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(FOLDER))
    import pareto_page

    return pareto_page


def cell(recipe: str, kind: str, width: float, size: float, by_seed: dict[int, float]) -> dict[str, Any]:
    values = list(by_seed.values())
    return {
        "settings": {"recipe": recipe, "kind": kind, "width": width}, "seeds": list(by_seed), "bytes": size,
        "top1": values, "mean": sum(values) / len(values), "deviation": 0.5, "n": len(values), "float_top1": 91.7,
        "test_images": 10_000, "machines": ["a machine"],
    }  # fmt: skip


def test_differences_are_by_seed_at_the_same_size(page: ModuleType) -> None:
    grid = [
        cell("fast", "uniform", 3, 107_000, {0: 90.0, 1: 91.0}),
        cell("fast", "layer", 3, 106_900, {1: 91.25, 0: 89.5, 2: 95.0}),
        cell("fast", "unit", 2.5, 90_000, {0: 88.0}),
        cell("nearest", "uniform", 2, 73_000, {0: 20.0}),
    ]
    text = page.fronts({"networks": {"resnet20": {str(at): row for at, row in enumerate(grid)}}})
    assert [line for line in text.splitlines() if line.startswith("| `")] == [
        "| `fast` | 2.5 | 90 | - | 88.00 (1) | - | - | - |",
        "| `fast` | 3 | 107 | 90.50 ± 0.50 (2) | - | 91.92 ± 0.50 (3) | - | -0.50, +0.25 |",
        "| `nearest` | 2 | 73 | 20.00 (1) | - | - | - | - |",
    ]
    assert "float 91.70" in text
    assert "a machine" in text


def test_the_results_have_the_bytes_of_one_width_where_both_were_run(page: ModuleType) -> None:
    import readme

    grid = readme.load("pareto")["networks"]["resnet20"]
    uniform = {row["settings"]["width"]: row["bytes"] for row in grid.values() if row["settings"]["kind"] == "uniform"}
    mixed = [row for row in grid.values() if row["settings"]["kind"] != "uniform"]
    assert mixed
    for row in mixed:
        assert row["bytes"] <= uniform.get(row["settings"]["width"], row["bytes"])
