"""What ``sweep_reliability.py`` and ``sweep_cost.py`` share: which package they use, and where their numbers go."""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
SCRATCH = ROOT / "build"  # on a disk, which a temporary folder need not be
RESULTS = ROOT / "benchmarks" / "results"
Part = Callable[[float], dict[str, Any]]


def use_package() -> None:
    """Settle what this process and all that it starts import."""
    paths = [str(ROOT / "src"), str(ROOT / "benchmarks")]
    sys.path[:0] = [*paths, str(ROOT)]
    # Ray keeps to the loopback, in drivers and nodes, and does not tell of its use.
    ray = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
    os.environ |= {"PYTHONPATH": os.pathsep.join(paths), **ray}
    SCRATCH.mkdir(exist_ok=True)


def provenance() -> dict[str, Any]:
    """As ``common.provenance``, without torch."""
    run = subprocess.run(["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True)
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return {
        "python": platform.python_version(),
        "sqlite": sqlite3.sqlite_version,
        **{name: _version(name) for name in ("sqlalchemy", "ray", "psycopg")},
        "machine": f"{platform.machine()}, {next(names, platform.processor())}, {os.cpu_count()} cores",
        "commit": run.stdout.strip() or "unknown",
    }


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def run_part(parts: dict[str, Part], arguments: argparse.Namespace, result: str) -> None:
    """Run one part and put what it found into ``benchmarks/results/RESULT.json``, beside the others."""
    from clcalib.files import write_atomically  # the paths are settled by now

    where, load = provenance(), os.getloadavg()[0]
    found = {**parts[arguments.part](arguments.size), "size": arguments.size, "seed": 0, **where}
    found["load"] = [round(load, 1), round(os.getloadavg()[0], 1)]  # of the machine, before and after
    print(json.dumps(found, indent=1))
    path = RESULTS / f"{result}.json"
    others = json.loads(path.read_text()) if path.exists() else {}
    write_atomically(path, (json.dumps({**others, arguments.part: found}, indent=1) + "\n").encode())
