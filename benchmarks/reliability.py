"""The full batteries of kills, damages, malicious files and bad numbers, and what saving costs: one JSON and one page.

    make test-hard                                # all of it: about an hour on two cores
    python benchmarks/reliability.py cost         # only what saving costs, and whether the room is estimated well
    python benchmarks/reliability.py figures FILE SIZE COMMIT  # of tests run by themselves, with CLCALIB_FIGURES=FILE
    python benchmarks/reliability.py page         # only docs/reliability.md anew, from the JSON

The batteries are tests (``tests/hard``), in their full size; each leaves its figures.  What saving costs is measured on
the embedded ResNet-20 with the default recipe: the share of the run's time that is spent in saves, and how many bytes
the output folder has at most, against what was estimated before.  Writes ``benchmarks/reliability.json``.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import torch

import clcalib
from clcalib.config import build
from clcalib.config_sections import RunConfig
from clcalib.config_sources import merge, read_toml
from clcalib.durable.state import RunState
from clcalib.files import write_atomically
from clcalib.run import dry_run, run
from common import ROOT, provenance
from reliability_page import page

PATH = ROOT / "benchmarks" / "reliability.json"
CONFIG = ROOT / "examples" / "demo" / "demo.toml"
RUNS = 3


class Meter:
    """Times every save."""

    def __init__(self) -> None:
        self.seconds, self.saves = 0.0, 0

    def __enter__(self) -> Meter:
        self.put = RunState.put

        def put(state: RunState, *arguments: Any, **named: Any) -> None:
            start = time.perf_counter()
            self.put(state, *arguments, **named)
            self.seconds += time.perf_counter() - start
            self.saves += 1

        RunState.put = put  # type: ignore[method-assign]
        return self

    def __exit__(self, *error: object) -> None:
        RunState.put = self.put  # type: ignore[method-assign]


class Watch:
    """Looks every few milliseconds how large a folder has become, whoever writes into it."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.largest, self.is_over = folder, 0, threading.Event()
        self.thread = threading.Thread(target=self.look)

    def __enter__(self) -> Watch:
        self.thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.is_over.set()
        self.thread.join()

    def look(self) -> None:
        while not self.is_over.wait(0.003):
            total = 0
            for file in self.folder.rglob("*"):
                with contextlib.suppress(OSError):  # it is gone by now
                    total += file.stat().st_size if file.is_file() else 0
            self.largest = max(self.largest, total)


def config_of(out: Path, **recipe: Any) -> RunConfig:
    changes = {"run": {"out": str(out), "threads": 1, "seed": 0}, "quantization": {"weights": 2, "activations": 4}}
    return build(RunConfig, merge(read_toml(CONFIG), changes, {"recipe": recipe} if recipe else {}), str(CONFIG))


def share_of_saves() -> dict[str, Any]:
    """What saves take of whole runs, the default recipe being as it is and a snapshot due every minute."""
    rows = []
    for _ in range(RUNS):
        with tempfile.TemporaryDirectory(dir=ROOT) as folder, Meter() as meter:
            start, cpu = time.perf_counter(), time.process_time()
            run(config_of(Path(folder) / "out"), clcalib.calibrate.observer.SilentObserver())
            seconds = time.perf_counter() - start
            rows.append(
                {
                    "run_seconds": round(seconds, 1),
                    "run_cpu_seconds": round(time.process_time() - cpu, 1),
                    "save_seconds": round(meter.seconds, 3),
                    "saves": meter.saves,
                }
            )
    worst = max(row["save_seconds"] / row["run_seconds"] for row in rows)
    return {"largest_share_of_run": round(worst, 4), "runs": rows}


def room() -> dict[str, Any]:
    """The most bytes that a run's folder has, with a snapshot before each step, against the estimate."""
    from clcalib import pipeline
    from clcalib.calibrate.journal import Journal

    rows = []
    for name, own in {"fast": {"name": "fast", "steps": 4}, "adaround": {"name": "adaround", "steps": 4}}.items():
        with tempfile.TemporaryDirectory(dir=ROOT) as folder, Watch(Path(folder)) as watch:
            config = config_of(Path(folder) / "out", **own)
            estimated = dry_run(config, clcalib.calibrate.observer.SilentObserver()).disk_bytes
            before, pipeline.Journal = pipeline.Journal, lambda state: Journal(state, snapshot_seconds=0.0)
            try:
                run(config, clcalib.calibrate.observer.SilentObserver())
            finally:
                pipeline.Journal = before
            rows.append({"recipe": name, "estimated": estimated, "largest": watch.largest})
    return {"ratio": [round(row["estimated"] / row["largest"], 3) for row in rows], "runs": rows}


def batteries() -> tuple[list[dict[str, Any]], str]:
    """Run the tests in their full size; their figures, and pytest's last line."""
    with tempfile.TemporaryDirectory() as folder:
        figures = Path(folder) / "figures"
        own = {"CLCALIB_HARD": "1", "CLCALIB_FIGURES": str(figures), "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-m", "pytest", "-q", "tests/hard", "-n", os.environ.get("WORKERS", "2")]
        finished = subprocess.run(command, cwd=ROOT, env={**os.environ, **own}, stdout=subprocess.PIPE, text=True)
        sys.stdout.write(finished.stdout)
        if finished.returncode != 0:
            sys.exit(finished.returncode)
        rows = [json.loads(line) for line in figures.read_text().splitlines()]
    return sorted(rows, key=lambda row: (row["name"], json.dumps(row))), finished.stdout.strip().splitlines()[-1]


def with_figures(before: list[dict[str, Any]], file: str, size: str, commit: str) -> list[dict[str, Any]]:
    """The figures of some batteries anew, the others as they were."""
    lines = [json.loads(line) for line in Path(file).read_text().splitlines()]
    found = [{**row, "size": size, "commit": commit} for row in lines]
    names = {row["name"] for row in found}
    rows = [row for row in before if row["name"] not in names] + found
    return sorted(rows, key=lambda row: (row["name"], json.dumps(row)))


def main() -> None:
    torch.set_num_threads(1)
    what = sys.argv[1] if len(sys.argv) > 1 else "all"
    result = json.loads(PATH.read_text()) if PATH.exists() else {}
    if what in ("all", "batteries"):
        figures, summary = batteries()
        own = {"size": "full", "commit": provenance()["commit"]}
        result |= {"figures": [{**row, **own} for row in figures], "pytest": summary}
    if what in ("all", "batteries", "figures"):
        result["machine"] = {key: value for key, value in provenance().items() if key != "commit"}
    if what == "figures":
        result["figures"] = with_figures(result.get("figures", []), *sys.argv[2:5])
    if what in ("all", "cost"):
        result["cost"] = {**share_of_saves(), "room": room(), "provenance": provenance()}
    if what != "page":
        write_atomically(PATH, (json.dumps(result, indent=1) + "\n").encode())
    write_atomically(ROOT / "docs" / "reliability.md", page(result).encode())


if __name__ == "__main__":
    main()
