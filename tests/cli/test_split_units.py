"""``clcalib quantize --split units``: what is told, and the same bytes whatever becomes of the workers."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from tests.cli.test_shared_runs import Capture, crews, kill_at_next_save, saved

import clcalib
from clcalib.cli.app import main
from clcalib.team.crew import Crew

RUN = ["quantize", "run.toml", "--bits", "W2A4", "--quiet"]
UNITS = ["--workers", "2", "--split", "units"]

__all__ = ["crews"]  # a fixture


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--split", "units"], "--split: expected --workers beside it"),
        (["--workers", "2", "--split", "layers"], "--split: expected images or units, got 'layers'"),
        ([*UNITS, "--shards", "4"], "--shards: expected 1 with --split units"),
        ([*UNITS, "--max-drop", "5"], "--max-drop: expected none, as it tries whole networks, with --split units"),
        ([*UNITS, "--size-budget", "1KB"], "--size-budget, --cost-budget: expected none"),
        ([*UNITS, "--target", "onnxruntime"], "--target: expected none, as its file is written from the whole"),
        ([*UNITS, "--submodule", "3"], "--submodule: expected none"),
        ([*UNITS, "--last-phase"], "--last-phase: expected none, as it trains the whole network at once"),
        (["--workers", "1", "--split", "units", "--last-phase"], "--last-phase: expected none"),
        (
            [*UNITS, "--set", "quantization.reparameterized_layer_norm=true"],
            "quantization.reparameterized_layer_norm: expected false",
        ),
    ],
)
def test_what_makes_no_sense_is_told(flags: list[str], message: str, workplace: Path, capsys: Capture) -> None:
    assert main([*RUN, "--out", "out", *flags]) == 2
    told = capsys.readouterr().err
    assert message in told
    assert "Traceback" not in told
    assert not Path("out").exists()


def test_a_dry_run_prints_the_plan(workplace: Path, capsys: Capture) -> None:
    assert main(["quantize", "run.toml", "--bits", "W2A4", *UNITS, "--dry-run", "--set", "recipe.steps=2"]) == 0
    told = capsys.readouterr().out
    assert "Memory plan" in told
    assert told.index("Memory plan") < told.index("Estimate")
    command = ["quantize", "run.toml", "--bits", "W2A4", *UNITS, "--dry-run", "--json", "--set", "recipe.steps=2"]
    assert main(command) == 0
    plan = json.loads(capsys.readouterr().out)["plan"]
    assert [row["first"] for row in plan] == [0, plan[0]["last"] + 1]
    assert all(row["total"] == sum(row[key] for key in ("weights", "trained", "caches", "activation")) for row in plan)


@pytest.mark.slow
def test_the_bytes_are_those_of_one_worker_and_killed_ones_change_nothing(
    workplace: Path, capsys: Capture, crews: list[Crew]
) -> None:
    assert main([*RUN, "--out", "one", "--threads", "1", "--contrastive"]) == 0
    assert main([*RUN, "--out", "two", *UNITS, "--contrastive"]) == 0
    assert saved("two") == saved("one")
    assert sorted(path.name for path in Path("two").iterdir()) == sorted(
        path.name for path in Path("one").iterdir() if path.name != "report.json"
    )
    killer = kill_at_next_save(Path("killed"), crews, [1, 0])
    assert main([*RUN, "--out", "killed", *UNITS, "--contrastive"]) == 0
    killer.join()
    assert saved("killed") == saved("one")
    told = capsys.readouterr().err
    assert "worker 1 was killed by SIGKILL; all workers begin again where the run was saved" in told
    record = json.loads((Path("killed") / "run.json").read_text())
    assert (record["shards"], record["workers"]) == (1, 2)


@pytest.mark.slow
def test_a_stopped_run_goes_on_with_one_worker(workplace: Path, capsys: Capture) -> None:
    """It is stopped while the second worker leads, which saves through the first."""
    assert main([*RUN, "--out", "one", "--threads", "1", "--set", "recipe.steps=3000"]) == 0

    def stop() -> None:
        units = len(json.loads((workplace / "one" / "run.json").read_text())["units"])
        while not any((workplace / "out" / "state").glob(f"*unit-{units - 2:05d}*")):
            time.sleep(0.005)
        time.sleep(0.3)
        os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=stop)
    thread.start()
    assert main([*RUN, "--set", "recipe.steps=3000", "--out", "out", *UNITS]) == 143
    thread.join()
    assert f"go on with: clcalib quantize --resume {workplace / 'out'}" in capsys.readouterr().err
    assert main(["quantize", "--resume", "out", "--quiet", "--threads", "1"]) == 0
    assert saved("out") == saved("one")


@pytest.mark.slow
def test_the_result_loads(workplace: Path) -> None:
    assert main([*RUN, "--out", "out", *UNITS]) == 0
    assert main(["evaluate", "out", "--evaluation", "evaluation.safetensors"]) == 0
    assert main(["report", "out"]) == 0


@pytest.mark.slow
def test_calls_of_several_machines_share_it_too(workplace: Path) -> None:
    """The second call has a configuration without a section of the run, as it needs no output folder."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        meeting = ["--rendezvous", f"127.0.0.1:{free.getsockname()[1]}"]
    path = {"PYTHONPATH": str(Path(clcalib.__file__).parents[1])}
    command = [sys.executable, "-m", "clcalib", *RUN, *UNITS, *meeting, "--rank", "1"]
    other = subprocess.Popen(command, env={**os.environ, **path})
    assert main([*RUN, "--out", "out", *UNITS, *meeting, "--rank", "0"]) == 0
    assert other.wait(60) == 0
    assert main([*RUN, "--out", "one", "--threads", "1"]) == 0
    assert saved("out") == saved("one")
