"""The comparison with other libraries: its grid, its adapters as far as they can be read without a peer, its page."""

from __future__ import annotations

import math
import py_compile
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent.parent / "benchmarks"
SHARED = {"__init__", "adapter", "grid", "make_venv", "onnx_files", "page", "run"}
pytestmark = pytest.mark.skipif(not FOLDER.exists(), reason="the benchmarks are not part of this copy")


@pytest.fixture(autouse=True)
def _benchmarks_on_the_path(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))


@pytest.fixture
def grid():
    import peers.grid

    return peers.grid


@pytest.fixture
def page():
    import peers.page

    return peers.page


def run(peer: str, method: str, widths: tuple[int, int], top1: float) -> dict:
    return {
        "peer": peer,
        "method": method,
        "weights": widths[0],
        "activations": widths[1],
        "top1": top1,
        "float_top1": 91.73,
        "cpu_seconds": 12.4,
        "machine": "a machine",
        "versions": {"torch": "2.13.0"},
    }


def test_every_adapter_is_listed_and_compiles(grid, tmp_path):
    adapters = {path.stem for path in (FOLDER / "peers").glob("*.py")} - SHARED
    assert adapters == set(grid.PEERS)
    for name in adapters:
        assert Path(py_compile.compile(FOLDER / "peers" / f"{name}.py", tmp_path / name, doraise=True)).exists()


def test_every_peer_is_pinned_and_has_methods_at_known_widths(grid):
    for name, peer in grid.PEERS.items():
        assert peer.methods, name
        assert name == "ours" or any("==" in requirement for requirement in peer.requirements)
        for method in peer.methods.values():
            assert set(method.widths) <= set(grid.WIDTHS)
            assert method.otherwise or method.widths == grid.WIDTHS  # an unsupported width is explained


def test_no_two_runs_share_a_name(grid):
    names = [grid.name_of(peer, method, (4, 4), 0) for peer, about in grid.PEERS.items() for method in about.methods]
    assert len(set(names)) == len(names)


def test_standard_error_is_that_of_a_share(page):
    assert page.standard_error(50.0, images=100) == pytest.approx(5.0)
    assert page.standard_error(90.0) == pytest.approx(100 * math.sqrt(0.9 * 0.1 / 10_000))
    assert page.noise(90.0) == pytest.approx(2 * math.hypot(0.3, 0.3))


def test_a_cell_tells_why_there_is_no_number(page):
    name = page.name_of("ours", "fast", (2, 2), 0)
    assert page.cell({name: run("ours", "fast", (2, 2), 81.354)}, "ours", "fast", (2, 2)) == "81.35 (12 s)"
    assert page.cell({name: {"failed": "no memory"}}, "ours", "fast", (2, 2)) == "failed"
    assert page.cell({}, "ours", "fast", (2, 2)) == "not run yet"
    assert page.cell({}, "nncf", "default", (2, 2)) == "unsupported"


@pytest.mark.parametrize(
    ("theirs", "words"),
    [(80.0, "+5.00 points, ours is better"), (85.4, "no difference beyond noise"), (90.0, "the peer is better")],
)
def test_the_verdict_names_the_better_one_and_counts_noise(page, theirs, words):
    runs = {
        page.name_of("ours", "nearest", (4, 4), 0): run("ours", "nearest", (4, 4), 60.0),
        page.name_of("ours", "fast", (4, 4), 0): run("ours", "fast", (4, 4), 85.0),
        page.name_of("mct", "ptq", (4, 4), 0): run("mct", "ptq", (4, 4), theirs),
    }
    assert "too few for a verdict" in page.verdict(runs, (4, 4))
    runs[page.name_of("onnxruntime", "minmax", (4, 4), 0)] = run("onnxruntime", "minmax", (4, 4), 50.0)
    assert [one[1:] for one in page.ranking(runs, (4, 4))][-2] == ("ours", "nearest")
    assert words in page.verdict(runs, (4, 4))
    assert "best of 2 that ran" in page.verdict(runs, (4, 4))
    assert "nothing to compare" in page.verdict(runs, (8, 8))
    assert page.progress(runs).startswith("4 of ")


def test_the_page_is_what_the_results_say(page):
    assert page.PAGE.read_text(encoding="utf-8") == page.page(page.load())
