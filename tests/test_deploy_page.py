"""The page on deployed networks: it is what the results say."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import pytest

FOLDER = Path(__file__).parent.parent / "benchmarks"
pytestmark = pytest.mark.skipif(not FOLDER.exists(), reason="the benchmarks are not part of this copy")


@pytest.fixture
def page(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(FOLDER))
    import deploy_page

    return deploy_page


def test_the_page_is_what_the_results_say(page: ModuleType) -> None:
    rows = [page.cells(page.RESULTS / name) for name in ("deploy", "deploy_without_vnni")]
    assert all(rows)
    assert page.PAGE.read_text() == page.page(*rows)


def test_the_timing_of_programs_says_how_wide_it_spreads(page: ModuleType) -> None:
    row = {"speedup": 1.5, "cpu_speedup": 2.0, "cpu_lowest": 1.25, "cpu_highest": 3.0}
    deployment = {
        "integer_layers": 19, "float_layers": 1, "max_code_difference": 1, "agreement": 0.995, "images": 512
    }  # fmt: skip
    found = {
        "network": "resnet20", "bits": "W8A8", "recipe": "nearest", "rounds": 7, "threads": 1, "machine": "a machine",
        "lowered_by": "2.15", "deployment": deployment, "batches": {"64": row},
    }  # fmt: skip
    text = page._torch_program(found)
    assert "| 64 | 2.00x | 1.25x to 3.00x | 1.50x |" in text
    assert "19 of 20 layers in integers" in text
    assert "99.50 % of 512 images" in text
