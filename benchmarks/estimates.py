"""What ``clcalib.estimate`` says against what the run then takes.

    python benchmarks/estimates.py

The embedded ResNet-20 and the MobileNetV2, the embedded calibration and evaluation images, W2A4, one thread.  Estimate
and run are processes of their own.  Seconds are CPU seconds of the process, so that other work on the machine plays no
part.  Writes ``benchmarks/results/estimates.json``.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from typing import Any

import torch

import clcalib
from clcalib.config_sources import read_toml
from clcalib.data.sources import load_calibration, load_evaluation
from clcalib.data.transform import Transform
from clcalib.report.environment import peak_memory
from common import NETWORKS, ROOT, provenance, write_result

CASES: dict[str, tuple[str, Callable[[], clcalib.Recipe], int | None]] = {
    "demo fast": ("demo", lambda: clcalib.recipes.fast(steps=100), None),
    "demo brecq, Fisher, 40 MB": (
        "demo",
        lambda: clcalib.recipes.brecq(steps=60, activation_steps=40, is_fisher_weighted=True),
        40_000_000,
    ),
    "mobilenetv2 qdrop + contrastive": (
        "mobilenetv2",
        lambda: clcalib.with_contrastive(clcalib.recipes.qdrop(steps=100)),
        None,
    ),
}
EVALUATION, HELD_OUT = 1000, 256


def arguments(name: str) -> dict[str, Any]:
    """Everything that ``quantize`` and ``estimate`` are called with."""
    network, recipe, budget = CASES[name]
    toml = ROOT / "examples" / "demo" / "demo.toml"
    data = read_toml(toml)["data"]
    transform = Transform(mean=tuple(data["mean"]), standard_deviation=tuple(data["standard_deviation"]))
    evaluation = load_evaluation(data["evaluation"], transform=transform, count=EVALUATION, seed=0)
    return {
        "model": NETWORKS[network].load(),
        "calibration": load_calibration(data["calibration"], transform=transform, count=data["count"], seed=0),
        "recipe": recipe(),
        "bits": clcalib.Bits(2, 4),
        "evaluation": evaluation,
        "held_out": clcalib.CalibrationSet.from_tensor(evaluation.images[:HELD_OUT]),
        "memory_budget": budget,
    }


def child(name: str, kind: str) -> None:
    """One estimate or one run; prints what it says or takes."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    given = arguments(name)
    start = time.process_time()
    if kind == "estimate":
        found = clcalib.estimate(**given, clock=time.process_time)
        seconds, sizes = found.seconds, (found.peak_memory_bytes, found.stored_bytes, found.spilled_bytes)
    else:
        record = clcalib.quantize(**given).record
        seconds = time.process_time() - start
        sizes = (peak_memory(torch.device("cpu")), record.stored_bytes, record.spilled_bytes)
    own = round(time.process_time() - start, 2)
    named = dict(zip(("peak_memory_bytes", "stored_bytes", "spilled_bytes"), sizes, strict=True))
    print(json.dumps({"seconds": round(seconds, 2), **named, "own_seconds": own}))


def measure(name: str, kind: str) -> dict[str, Any]:
    command = [sys.executable, "-W", "ignore", __file__, name, kind]
    finished = subprocess.run(command, capture_output=True, text=True, check=True)
    measured: dict[str, Any] = json.loads(finished.stdout.splitlines()[-1])
    return measured


def main() -> None:
    torch.set_num_threads(1)
    origin, rows = provenance(seed=0), []
    for name in CASES:
        said, taken = measure(name, "estimate"), measure(name, "run")
        ratios = {
            key: round(said[key] / taken[key], 3) if taken[key] else None for key in taken if key != "own_seconds"
        }
        rows.append({"case": name, "estimate": said, "run": taken, "ratios": ratios})
        print(f"{name:32} {ratios}  estimate took {said['own_seconds']} s, the run {taken['seconds']} s", flush=True)
    write_result("estimates", {"cases": rows, **origin})


if __name__ == "__main__":
    if len(sys.argv) == 3:
        child(sys.argv[1], sys.argv[2])
    else:
        main()
