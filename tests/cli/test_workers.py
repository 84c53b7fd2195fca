"""The flags of workers: what they mean, and every combination that makes no sense."""

from __future__ import annotations

from pathlib import Path

import pytest

from clcalib.cli.app import main
from clcalib.cli.given import WorkerFlags
from clcalib.cli.workers import with_shards
from clcalib.errors import ArgumentError
from clcalib.team.place import Place

Capture = pytest.CaptureFixture[str]
RUN = ["quantize", "run.toml", "--bits", "W2A4", "--quiet", "--out", "out"]
MEETING = ["--rendezvous", "10.0.0.7:29500"]
TORCHRUN = {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "10.0.0.7", "MASTER_PORT": "29500"}


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--workers", "none"], "--workers: expected a whole number of workers, at least 1, or env, got 'none'"),
        (["--workers", "0"], "--workers: expected a whole number of workers"),
        (["--workers", "3"], "--workers: expected a divisor of the 4 shards, got 3"),
        (["--workers", "2", "--shards", "3"], "--workers: expected a divisor of the 3 shards, got 2"),
        (["--shards", "0"], "run.shards: expected a whole number of parts of the images"),
        (["--rank", "0"], "--rank: expected --workers beside it"),
        (MEETING, "--rendezvous: expected --workers beside it"),
        (["--wait", "5"], "--wait: expected --workers beside it"),
        (["--workers", "2", "--wait", "5"], "--wait: expected --rendezvous beside it"),
        (["--workers", "2", "--rank", "0"], "--rendezvous: expected a value beside --rank"),
        (["--workers", "2", *MEETING], "--rank: expected a value beside --rendezvous"),
        (["--workers", "2", *MEETING, "--rank", "2"], "--rank: expected 0 to 1, with --workers 2, got 2"),
        (["--workers", "2", "--rank", "0", "--rendezvous", "here"], "--rendezvous: expected HOST:PORT"),
        (["--workers", "2", "--rank", "0", *MEETING, "--wait", "0"], "--wait: expected seconds above 0"),
        (["--workers", "2", "--rank", "0", "--rendezvous", "192.0.2.1:29500"], "which cannot be bound"),
        (["--workers", "env"], "--workers env: expected the variables RANK, WORLD_SIZE"),
        (["--workers", "env", "--rank", "0"], "--rank: expected nothing beside --workers env"),
        (["--workers", "2", "--max-drop", "5"], "--max-drop: expected one worker"),
    ],
)
def test_what_makes_no_sense_is_told(
    flags: list[str], message: str, workplace: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in TORCHRUN:
        monkeypatch.delenv(name, raising=False)
    assert main([*RUN, *flags]) == 2
    told = capsys.readouterr().err
    assert message in told
    assert "Traceback" not in told
    assert not Path("out").exists()


def test_torchrun_says_where_a_worker_is() -> None:
    flags = WorkerFlags(workers="env")
    assert flags.place(TORCHRUN) == Place("10.0.0.7", 29500, 2, (1,), is_host=False)
    first = flags.place({**TORCHRUN, "RANK": "0"})
    assert first is not None
    assert first.is_host
    agent = {"TORCHELASTIC_USE_AGENT_STORE": "True", "TORCHELASTIC_RUN_ID": "a", "TORCHELASTIC_RESTART_COUNT": "2"}
    kept = flags.place({**TORCHRUN, **agent, "RANK": "0"})
    assert kept == Place("10.0.0.7", 29500, 2, (0,), is_host=False, session="clcalib-a-2")
    for name, value in (("RANK", "2"), ("WORLD_SIZE", "x"), ("MASTER_PORT", "")):
        with pytest.raises(ArgumentError, match=name):
            flags.place({**TORCHRUN, name: value})


def test_workers_of_one_machine_meet_where_nothing_else_comes() -> None:
    assert WorkerFlags(workers="2").place({}) == Place("127.0.0.1", 0, 2, (0, 1), is_host=True)
    assert WorkerFlags().place(TORCHRUN) is None


def test_a_shared_run_has_four_shards_and_a_thread_each_unless_it_says_otherwise() -> None:
    place = Place.here(1)
    assert with_shards({"run": {}}, None, is_resumed=False) == {"run": {}}
    assert with_shards({"run": {}}, place, is_resumed=False)["run"] == {"shards": 4, "threads": 1}
    assert with_shards({"run": {"shards": 8}}, place, is_resumed=False)["run"] == {"shards": 8, "threads": 1}
    assert with_shards({"run": {"threads": 2}}, place, is_resumed=True)["run"] == {"threads": 2}
    # As of a call with another rank, whose configuration says nothing of the run.
    assert with_shards({}, place, is_resumed=False)["run"] == {"shards": 4, "threads": 1}
    assert with_shards({}, place, is_resumed=False, is_by_units=True)["run"] == {"threads": 1}
