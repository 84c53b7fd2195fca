"""Peak memory of a run without optimisation, where the images are large: ranges, nearest rounding and no more.

    python benchmarks/range_memory.py

MobileNetV2 of torchvision with random weights at 224 pixels, W4A4, one thread; every run is a process of its own.  What
is found inside a unit (ranges) is found from up to 256 images, in batches; so the peak grows with the stores of the
units' inputs, and under a memory budget hardly at all.  Writes ``benchmarks/results/range_memory.json``.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import tempfile
from typing import Any

import torch
import torchvision

import clcalib
from common import provenance, write_result

PIXELS, COUNTS, BUDGETS = 224, (16, 64), (None, 100_000_000)


def child(count: int, budget: int) -> None:
    """One run; prints its peak and the peak before it began.  Budget 0 is none."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = torchvision.models.mobilenet_v2(weights=None).eval()
    images = torch.randn(count, 3, PIXELS, PIXELS, generator=torch.Generator().manual_seed(0))
    before = peak()
    with tempfile.TemporaryDirectory(dir=".") as folder:
        result = clcalib.quantize(
            model,
            clcalib.CalibrationSet.from_tensor(images),
            recipe=clcalib.recipes.nearest(),
            bits=clcalib.Bits(4, 4),
            weight_range="minmax",  # not what is measured here, and quicker
            memory_budget=budget or None,
            spill_folder=folder,
            measured_images=0,
        )
    record = result.record
    seconds = {stage: round(value, 1) for stage, value in record.seconds_per_stage.items()}
    print(json.dumps({"peak": peak(), "before": before, "stored": record.stored_bytes, "seconds": seconds}))


def peak() -> int:
    """The largest resident set so far, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def measure(count: int, budget: int | None) -> dict[str, Any]:
    command = [sys.executable, "-W", "ignore", __file__, str(count), str(budget or 0)]
    finished = subprocess.run(command, capture_output=True, text=True, check=True)
    measured: dict[str, Any] = json.loads(finished.stdout.splitlines()[-1])
    return measured


def main() -> None:
    origin, rows = provenance(torchvision=torchvision.__version__, seed=0), []
    for count in COUNTS:
        for budget in BUDGETS:
            rows.append({"images": count, "memory_budget": budget, **measure(count, budget)})
            print(rows[-1], flush=True)
    write_result("range_memory", {"runs": rows, "pixels": PIXELS, **origin})


if __name__ == "__main__":
    if len(sys.argv) == 3:
        child(int(sys.argv[1]), int(sys.argv[2]))
    else:
        main()
