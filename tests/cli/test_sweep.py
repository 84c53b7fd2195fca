"""``clcalib sweep`` and ``clcalib leaderboard``, end to end on a tiny network."""

from __future__ import annotations

import csv
import hashlib
import importlib.util
import io
import json
from pathlib import Path

import pytest

pytest.importorskip("sqlalchemy", reason="SQLAlchemy is not installed")

from tests.sweep.inline import Inline

import clcalib
from clcalib.cli import main
from clcalib.report.record import read_record
from clcalib.sweep.opening import open_database

Capture = pytest.CaptureFixture[str]
SWEEP = """
[sweep]
out = "runs"

[common.data]
calibration = "calibration.safetensors"
evaluation = "evaluation.safetensors"
count = 32

[networks.net.model]
entry = "net.py:build"
weights = "net.safetensors"

[recipes]
nearest = { name = "nearest" }
qdrop = { name = "qdrop", steps = 4 }

[contrastive.term]

[[grids]]
widths = ["W2A4"]
recipes = ["qdrop"]

[[grids]]
widths = ["W2A4"]
recipes = ["nearest"]
contrastive = ["none"]
"""
ODD = '[networks.odd.model]\nentry = "net.py:biuld"\n\n[networks.net.model]'  # beside the one that is right


@pytest.fixture
def swept(workplace: Path) -> Path:
    (workplace / "sweep.toml").write_text(SWEEP)
    return workplace


@pytest.fixture
def inline(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs in this process; others are started by the test below, which is slow, and by tests/sweep with small jobs."""
    monkeypatch.setattr("clcalib.cli.actions.sweep._executor", lambda *_: Inline())


@pytest.mark.usefixtures("inline")
def test_a_sweep_from_the_plan_to_the_leaderboard(swept: Path, capsys: Capture) -> None:
    text = SWEEP.replace("[networks.net.model]", ODD)
    grid = '[[grids]]\nwidths = ["W2A4"]\nrecipes = ["qdrop"]'
    Path("sweep.toml").write_text(text.replace(grid, grid + '\nnetworks = ["net"]'))
    assert main(["sweep", "sweep.toml", "--dry-run"]) == 0
    printed = capsys.readouterr().out
    assert "net/W2A4/qdrop/term/seed0" in printed
    assert "4 missing" in printed
    assert not Path("runs").exists()

    # One fails, and is told; the others are done.
    assert main(["sweep", "sweep.toml", "--workers", "2"]) == 6
    told = capsys.readouterr()
    assert "3 of 4 runs are done" in told.out
    assert "done net/W2A4/nearest/none/seed0  " in told.err
    assert "1 of 4 runs failed; mend what is wrong and start the sweep again:" in told.err
    assert "odd/W2A4/nearest/none/seed0: model.entry: expected a name in" in told.err
    assert "Traceback" not in told.err
    (folder,) = Path("runs/runs").glob("net-W2A4-qdrop-none-seed0-*")
    record = read_record(folder / "run.json")
    assert (record.weight_bits, record.activation_bits, record.threads, record.precision) == (2, 4, 1, "float32")

    # The same by itself: the result is the same to the bit.
    alone = ["quantize", "run.toml", "--bits", "W2A4", "--steps", "4", "--threads", "1", "--precision", "float32"]
    assert main([*alone, "--out", "alone", "--quiet"]) == 0
    one, other = (Path(place, "model.safetensors").read_bytes() for place in ("alone", folder))
    assert one == other
    capsys.readouterr()

    before = {path: path.stat().st_mtime_ns for path in Path("runs/runs").rglob("*")}
    Path("sweep.toml").write_text(SWEEP)
    assert main(["sweep", "sweep.toml", "--json"]) == 0
    events = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [event["event"] for event in events] == ["start", "end"]
    assert events[-1]["done"] == 3
    assert {path: path.stat().st_mtime_ns for path in Path("runs/runs").rglob("*")} == before

    assert main(["leaderboard", "runs"]) == 0
    printed = capsys.readouterr().out
    assert "Gain of the contrastive term" in printed
    assert "3 runs done, 1 failed" in printed
    assert main(["leaderboard", "runs/sweep.db", "--format", "csv", "--network", "net", "--widths", "W2A4"]) == 0
    lines = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert {(line["recipe"], line["contrastive"]) for line in lines} == {
        ("qdrop", "none"),
        ("qdrop", "term"),
        ("nearest", "none"),
    }
    top1 = next(line for line in lines if (line["recipe"], line["contrastive"]) == ("qdrop", "none"))
    assert float(top1["score"]) == pytest.approx(100 * (record.quantized_top1 or 0.0))
    assert main(["leaderboard", "runs", "--format", "html", "--out", "board.html"]) == 0
    assert "<table>" in Path("board.html").read_text()
    assert main(["leaderboard", "runs", "--format", "markdown"]) == 0
    assert "| network | widths |" in capsys.readouterr().out
    assert main(["leaderboard", "runs", "--network", "nt"]) == 2
    assert "--network, --widths: expected some of net W2A4, odd W2A4, got nt" in capsys.readouterr().err
    assert hashlib.sha256(other).hexdigest() in Path("runs/sweep.db").read_bytes().decode("latin1")


@pytest.mark.slow
@pytest.mark.parametrize("pool", ["processes", "ray"])
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::ResourceWarning", "ignore::FutureWarning")  # Ray's
def test_other_processes_bring_the_same_results(
    swept: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch, pool: str
) -> None:
    if importlib.util.find_spec(pool) is None and pool == "ray":
        pytest.skip("Ray is not installed; its extra is clcalib[ray]")
    monkeypatch.setenv("PYTHONPATH", str(Path(clcalib.__file__).parent.parent))
    assert main(["sweep", "sweep.toml", "--on", pool, "--workers", "2", "--json"]) == 0
    events = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [event["event"] for event in events] == ["start", "done", "done", "done", "end"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("clcalib.cli.actions.sweep._executor", lambda *_: Inline())
        assert main(["sweep", "sweep.toml", "--out", "here"]) == 0
    here, there = (
        {row["key"]: row["digest"] for row in open_database(Path(folder, "sweep.db")).rows()}
        for folder in ("here", "runs")
    )
    assert here == there
    assert len(here) == 3


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["sweep", "nothing.toml"], 2, "cannot be read: No such file"),
        (["sweep", "sweep.toml", "--workers", "0"], 2, "--workers: expected a whole number, at least 1, got 0"),
        (["sweep", "sweep.toml", "--ray-address", "auto"], 2, "--ray-address: expected nothing without --on ray"),
        (["sweep", "sweep.toml", "--only", "W8A8"], 2, "no run has any of these in its label: W8A8"),
        (["sweep", "sweep.toml", "--set", "data.cuont=1"], 2, "data.cuont: unknown key; did you mean 'count'?"),
        (["sweep", "sweep.toml", "--database", "mysql://h/n"], 2, "expected a path, or a URL such as postgresql://"),
        (["sweep", "sweep.toml", "--database", "net.py"], 2, "cannot be used: file is not a database"),
        (["leaderboard", "nowhere"], 2, "there is no database"),
        (["leaderboard", "run.toml"], 2, "cannot be used: file is not a database"),
        (["leaderboard", "run.toml", "--out", "a.html"], 2, "--out: expected a file for --format csv"),
    ],
)
def test_what_is_wrong_is_told_before_anything_begins(
    swept: Path, capsys: Capture, arguments: list[str], code: int, message: str
) -> None:
    assert main(arguments) == code
    told = capsys.readouterr().err
    assert message in told
    assert "Traceback" not in told
    assert not Path("runs", "runs").exists()


@pytest.mark.parametrize(
    ("missing", "arguments", "extra"),
    [
        ("sqlalchemy", ["sweep", "sweep.toml"], "sweep"),
        ("sqlalchemy", ["leaderboard", "runs"], "sweep"),
        ("psycopg", ["sweep", "sweep.toml", "--database", "postgresql://h/n"], "postgresql"),
        ("ray", ["sweep", "sweep.toml", "--on", "ray"], "ray"),
    ],
)
def test_a_missing_package_is_told_with_the_command_that_brings_it(
    swept: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch, missing: str, arguments: list[str], extra: str
) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *more: None if name == missing else found(name, *more)
    )
    assert main(arguments) == 2
    assert (
        f'a sweep needs {missing}; install what it needs with: pip install "clcalib[{extra}]"'
        in capsys.readouterr().err
    )
