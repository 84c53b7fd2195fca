"""Cells of the study, run by a sweep, against the study's own rows: benchmarks/results/sweep_study.json.

    python benchmarks/sweep_study.py --data DATA
    python benchmarks/sweep_study.py --data DATA --cells nearest qdrop --seed 1

The study takes calibration images in another order than a sweep, which chooses them as every run does.  So the sweep
gets those of the row here, as a file; all else is benchmarks/study.toml as it stands.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from clcalib.data.selection import choose
from clcalib.sweep.database import Database
from common import ROOT, cifar10, provenance, shuffled, write_result
from run_files import path_of
from study.grid import CALIBRATION_IMAGES, host_key
from study.one import FOLDER

NETWORK, WIDTHS = "demo", "W2A2"
SCRATCH = ROOT / "build"


def images_for(data: Path, seed: int, path: Path) -> None:
    """The calibration images of a seed of the study, so laid that the choice of a sweep finds them in their order."""
    images, _ = cifar10(data, "train", shuffled(seed)[:CALIBRATION_IMAGES])
    laid = torch.empty_like(images)
    laid[list(choose(CALIBRATION_IMAGES, CALIBRATION_IMAGES, seed))] = images
    save_file({"images": laid}, path)


def swept(data: Path, hosts: list[str], seed: int, folder: Path) -> dict[str, dict[str, Any]]:
    """Host -> row of the sweep's database."""
    images = folder / "calibration.safetensors"
    images_for(data, seed, images)
    only = [part for host in hosts for part in ("--only", f"{NETWORK}/{WIDTHS}/{host}/none/seed{seed}")]
    places = ["--set", f"data.calibration={images}", "--set", f"data.evaluation={data}", "--out", str(folder / "runs")]
    file = str(ROOT / "benchmarks" / "study.toml")
    subprocess.run([sys.executable, "-m", "clcalib", "sweep", file, *only, *places, "--workers", "1"], check=True)
    return {row["recipe"]: row for row in Database.open(folder / "runs" / "sweep.db").rows()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with CIFAR-10 (clcalib data cifar10)")
    parser.add_argument("--cells", nargs="+", default=["nearest"], help="hosts, without the contrastive term")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    data, found, where = arguments.data.absolute(), [], provenance()
    SCRATCH.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=SCRATCH) as place:
        rows = swept(data, arguments.cells, arguments.seed, Path(place))
    for host, row in rows.items():
        key = host_key(NETWORK, host, is_contrastive=False, widths=WIDTHS.lower())
        committed = path_of(key, arguments.seed, FOLDER).read_text()
        found.append(compared(row, key, committed))
        print(found[-1])
    write_result("sweep_study", {"cells": found, "seed": arguments.seed, **where})


def compared(row: dict[str, Any], key: str, committed: str) -> dict[str, Any]:
    """What the sweep found and what the study's row says, in percent."""
    theirs = json.loads(committed)
    ours = {"test_top1": round(100 * row["quantized_top1"], 2), "float_top1": round(100 * row["float_top1"], 2)}
    told = {name: theirs[name] for name in ours}
    return {"key": key, "sweep": ours, "row": told, "is_equal": ours == told, "digest": row["digest"]}


if __name__ == "__main__":
    main()
