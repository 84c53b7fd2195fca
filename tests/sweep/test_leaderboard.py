"""The leaderboard against values by hand, and how it is written down."""

from __future__ import annotations

import csv
import io
from typing import Any

import pytest

from clcalib.sweep.leaderboard import Leaderboard, leaderboard
from clcalib.sweep.showing import as_csv, as_html, as_markdown, state_of, tables_of
from clcalib.sweep.statistics import t_interval

CODE = "clcalib 1, source 0123456789abcdef, torch 2"


def row(recipe: str, term: str, seed: int, top1: float | None, **more: Any) -> dict[str, Any]:
    network, widths = more.pop("network", "net"), more.pop("widths", "W2A2")
    found = {
        "network": network,
        "widths": widths,
        "recipe": recipe,
        "contrastive": term,
        "seed": seed,
        "cell": f"{network} {widths} {recipe} {term}",
        "pair": f"{network} {widths} {recipe} {seed}",
        "code": CODE,
        "state": "done",
        "digest": "d",
        "quantized_top1": top1,
        "nearest_top1": 0.25,
        "float_top1": 0.9,
        "agreement": 0.5,
        "seconds": 4.0,
    }
    return found | more


ROWS = [
    *(row("qdrop", "none", seed, top1) for seed, top1 in enumerate((0.50, 0.60, 0.70))),
    *(row("qdrop", "term", seed, top1, seconds=8.0) for seed, top1 in enumerate((0.51, 0.62, 0.73))),
    row("nearest", "none", 0, 0.25),
    row("qdrop", "none", 0, 0.80, network="other"),
    row("qdrop", "term", 0, 0.79, network="other"),
    row("qdrop", "term", 1, 0.99, network="other"),  # without a partner
    row("fast", "none", 0, None, digest=None, agreement=None, state="failed"),
    row("fast", "none", 1, None, digest=None, agreement=None, state="queued"),
]


@pytest.fixture
def board() -> Leaderboard:
    return leaderboard(ROWS)


def test_methods_are_ranked_by_network_and_widths(board: Leaderboard) -> None:
    ranked = [(row.network, row.recipe, row.contrastive, round(row.score, 6), row.is_best) for row in board.standings]
    assert ranked == [
        ("net", "qdrop", "term", 62.0, True),
        ("net", "qdrop", "none", 60.0, False),
        ("net", "nearest", "none", 25.0, False),
        ("other", "qdrop", "term", 89.0, True),
        ("other", "qdrop", "none", 80.0, False),
    ]
    best = board.standings[0]
    assert (best.seeds, best.seconds, best.nearest, best.floating, best.measure) == (3, 8.0, 25.0, 90.0, "top-1")
    assert best.deviation == pytest.approx(11.0, abs=1e-9)
    assert board.counts == {"queued": 1, "running": 0, "done": 10, "failed": 1}
    assert state_of(board) == "10 runs done, 1 queued, 1 failed"


def test_the_gain_is_that_of_pairs(board: Leaderboard) -> None:
    here, there = board.gains
    assert (here.network, here.widths, here.recipe, here.term, here.pairs) == ("net", "W2A2", "qdrop", "term", 3)
    assert here.mean == pytest.approx(2.0)
    assert (here.low, here.high) == pytest.approx(t_interval([1.0, 2.0, 3.0]))
    assert (here.low, here.high) == pytest.approx((2 - 4.303 / 3**0.5, 2 + 4.303 / 3**0.5))
    assert (there.network, there.pairs, there.low, there.high) == ("other", 1, None, None)
    assert there.mean == pytest.approx(-1.0)
    (overall,) = board.overall
    assert (overall.network, overall.pairs) == (None, 4)
    assert overall.mean == pytest.approx(1.25)
    assert board.standings[0].gain == here
    assert board.standings[1].gain is None


def test_what_is_not_the_same_in_all_else_is_no_pair() -> None:
    rows = [row("qdrop", "none", 0, 0.5), row("qdrop", "term", 0, 0.9, pair="another calibration set")]
    assert leaderboard(rows).gains == ()


def test_it_can_be_cut_down() -> None:
    assert {row.network for row in leaderboard(ROWS, networks=["other"]).standings} == {"other"}
    assert leaderboard(ROWS, widths=["w2a2"]).standings == leaderboard(ROWS).standings
    assert leaderboard(ROWS, widths=["W4A4"]).standings == ()


def test_without_labels_the_agreement_counts() -> None:
    (found,) = leaderboard([row("qdrop", "none", 0, None, nearest_top1=None, float_top1=None)]).standings
    assert (found.score, found.measure, found.nearest) == (50.0, "agreement", None)


def test_versions_of_the_code_stand_side_by_side() -> None:
    other = row("qdrop", "none", 0, 0.4, code="clcalib 1, source fedcba, torch 2", cell="c", pair="p")
    board = leaderboard([*ROWS, other])
    assert board.has_codes
    assert {row.code for row in board.standings} == {"012345", "fedcba"}
    assert ("code", False) in tables_of(board)[0].columns
    assert ("code", False) not in tables_of(leaderboard(ROWS))[0].columns


def test_csv_has_a_line_for_each_method(board: Leaderboard) -> None:
    lines = list(csv.DictReader(io.StringIO(as_csv(board))))
    assert len(lines) == 5
    assert (lines[0]["recipe"], float(lines[0]["score"]), lines[0]["is_best"]) == ("qdrop", 62.0, "True")
    assert (float(lines[0]["gain"]), lines[0]["pairs"]) == (pytest.approx(2.0), "3")
    assert lines[1]["gain"] == ""
    assert "'=1+1" in as_csv(leaderboard([row("=1+1", "none", 0, 0.5)]))


def test_markdown_has_the_tables(board: Leaderboard) -> None:
    text = as_markdown(board)
    assert "| **net** | **W2A2** | **qdrop** | **term** | **62.00** |" in text
    assert "| net | W2A2 | qdrop | term | +2.00 | -0.48 .. +4.48 | 3 |" in text
    assert "| qdrop | term | +1.25 |" in text
    assert "a\\|b" in as_markdown(leaderboard([row("a|b", "none", 0, 0.5)]))


def test_names_in_html_are_escaped() -> None:
    page = as_html(leaderboard([row("<script>alert(1)</script>", "none", 0, 0.5)]), "<b>sweep</b>")
    assert "<script>" not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert "&lt;b&gt;sweep&lt;/b&gt;" in page
    assert page.count('<tr class="best">') == 1


def test_an_empty_leaderboard_is_told() -> None:
    board = leaderboard([])
    assert state_of(board) == "0 runs done"
    assert tables_of(board)[0].rows == ()
    assert as_csv(board).count("\n") == 1
    assert "0 runs done" in as_html(board, "sweep")
