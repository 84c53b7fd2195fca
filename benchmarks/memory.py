"""Peak memory against the number of calibration images, with and without a memory budget.

    python benchmarks/memory.py

ResNet-20 at W2A4 with QDrop and a few steps for each unit, one thread.  Every run is a process of its own; its peak is
the largest resident set of the whole process (interpreter, torch, images and all).  A digest over every tensor of the
quantized network tells whether the budget changed the result.  Writes ``benchmarks/results/memory.json``.
"""

from __future__ import annotations

import hashlib
import json
import resource
import subprocess
import sys
from typing import Any

import torch

import clcalib
from common import provenance, resnet20, write_result

COUNTS = (512, 1024, 2048, 4096)
BUDGET = 32_000_000
STEPS = 10


def child(count: int, budget: int) -> None:
    """One run; prints its peak, the peak before it began, and the digest of its result.  Budget 0 is none."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = resnet20().eval()
    images = torch.randn(count, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    calibration = clcalib.CalibrationSet(images, clcalib.CalibrationSet.from_tensor(images[:1]).provenance)
    before = peak()
    result = clcalib.quantize(
        model,
        calibration,
        recipe=clcalib.recipes.qdrop(steps=STEPS),
        bits=clcalib.Bits(2, 4),
        memory_budget=budget or None,
        measured_images=0,
    )
    content = hashlib.sha256()
    for name, tensor in sorted(result.model.state_dict().items()):
        content.update(name.encode())
        content.update(tensor.contiguous().view(-1).view(torch.uint8).numpy().data)
    seconds = round(result.record.seconds, 1)
    print(json.dumps({"peak": peak(), "before": before, "seconds": seconds, "digest": content.hexdigest()}))


def peak() -> int:
    """The largest resident set so far, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def measure(count: int, budget: int) -> dict[str, Any]:
    command = [sys.executable, "-W", "ignore", __file__, str(count), str(budget)]
    finished = subprocess.run(command, capture_output=True, text=True, check=True)
    measured: dict[str, Any] = json.loads(finished.stdout.splitlines()[-1])
    return measured


def main() -> None:
    torch.set_num_threads(1)
    origin = provenance(seed=0)
    rows = []
    print(f"{'images':>7} {'no budget':>12} {f'{BUDGET // 10**6} MB':>12} {'before':>12}  identical")
    for count in COUNTS:
        plain, bounded = measure(count, 0), measure(count, BUDGET)
        is_identical = plain["digest"] == bounded["digest"]
        rows.append({"images": count, "no_budget": plain, "budget": bounded, "is_identical": is_identical})
        sizes = [f"{run[key] / 1e6:9.0f} MB" for run, key in ((plain, "peak"), (bounded, "peak"), (bounded, "before"))]
        print(f"{count:7}", *sizes, f" {is_identical}", flush=True)
    ratios = {kind: rows[-1][kind]["peak"] / rows[0][kind]["peak"] for kind in ("no_budget", "budget")}
    print(f"{COUNTS[-1]} to {COUNTS[0]} images:", {kind: round(ratio, 3) for kind, ratio in ratios.items()})
    write_result("memory", {"runs": rows, "ratios": ratios, "budget": BUDGET, "steps": STEPS, **origin})


if __name__ == "__main__":
    if len(sys.argv) == 3:
        child(int(sys.argv[1]), int(sys.argv[2]))
    else:
        main()
