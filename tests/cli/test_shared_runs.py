"""``clcalib quantize --workers``: the same bytes for any number of workers, whatever becomes of them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

import clcalib
from clcalib.cli.app import main
from clcalib.durable.lock import folder_lock
from clcalib.team.crew import Crew

Capture = pytest.CaptureFixture[str]
RUN = ["quantize", "run.toml", "--bits", "W2A4", "--quiet"]

pytestmark = pytest.mark.slow  # each worker captures the network anew


def saved(folder: str) -> dict[str, bytes]:
    return {name: (Path(folder) / name).read_bytes() for name in ("model.safetensors", "model.json")}


@pytest.fixture
def crews(monkeypatch: pytest.MonkeyPatch) -> list[Crew]:
    """The workers of each attempt."""
    found = list[Crew]()
    start = Crew.start

    def remember(self: Crew, seats: object) -> None:
        start(self, seats)  # type: ignore[arg-type]
        found.append(self)

    monkeypatch.setattr(Crew, "start", remember)
    return found


def kill_at_next_save(out: Path, crews: list[Crew], ranks: list[int]) -> threading.Thread:
    """Kill a worker whenever another unit is saved."""

    def run() -> None:
        seen = set[str]()
        for rank in ranks:
            while len(now := {path.name for path in (out / "state").glob("manifest-*")} - seen) == 0:
                time.sleep(0.005)
            seen |= now
            os.kill(crews[-1].numbers[rank], signal.SIGKILL)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    return thread


def test_the_bytes_are_those_of_one_worker_and_killed_ones_change_nothing(
    workplace: Path, capsys: Capture, crews: list[Crew]
) -> None:
    assert main([*RUN, "--out", "one", "--workers", "1"]) == 0
    assert main([*RUN, "--out", "two", "--workers", "2"]) == 0
    assert capsys.readouterr().out.count("qdrop W2A4") == 2
    assert saved("two") == saved("one")
    killer = kill_at_next_save(Path("killed"), crews, [1, 0])
    assert main([*RUN, "--out", "killed", "--workers", "2"]) == 0
    killer.join()
    assert saved("killed") == saved("one")
    told = capsys.readouterr().err
    assert "worker 1 was killed by SIGKILL; all workers begin again where the run was saved" in told
    assert "worker 0 was killed by SIGKILL" in told
    record = json.loads((Path("killed") / "run.json").read_text())
    assert (record["shards"], record["workers"]) == (4, 2)
    assert sorted(path.name for path in Path("killed").iterdir()) == sorted(path.name for path in Path("one").iterdir())


def test_a_stopped_run_goes_on_with_another_number_of_workers(workplace: Path, capsys: Capture) -> None:
    assert main([*RUN, "--out", "one", "--workers", "1"]) == 0

    def stop() -> None:
        while not any((workplace / "out" / "state").glob("manifest-*1*")):
            time.sleep(0.005)
        os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=stop)
    thread.start()
    long = [*RUN, "--set", "recipe.steps=12", "--out", "out", "--workers", "2"]
    assert main(long) == 143
    thread.join()
    assert f"go on with: clcalib quantize --resume {workplace / 'out'}" in capsys.readouterr().err
    assert main(["quantize", "--resume", "out", "--quiet", "--workers", "4"]) == 0
    assert saved("out") == saved("one")


def test_what_comes_again_is_told_once_with_its_code(workplace: Path, capsys: Capture, crews: list[Crew]) -> None:
    with folder_lock(Path("held")):
        assert main([*RUN, "--out", "held", "--workers", "2"]) == 5
    assert capsys.readouterr().err.count("error: ") == 1
    Path("calibration.safetensors").write_bytes(b"no images")
    assert main([*RUN, "--out", "out", "--workers", "2"]) == 2
    told = capsys.readouterr().err
    assert told.count("error: ") == 1
    assert "calibration.safetensors" in told
    assert len(crews) == 2
    assert not Path("out").exists()


def test_torchrun_starts_it_too(workplace: Path) -> None:
    assert main([*RUN, "--out", "one", "--workers", "1"]) == 0
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "-m"]
    command = [*launcher, "clcalib", *RUN, "--out", "out", "--workers", "env"]
    path = {"PYTHONPATH": str(Path(clcalib.__file__).parents[1])}
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, env={**os.environ, **path})
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("qdrop W2A4") == 1
    assert saved("out") == saved("one")
