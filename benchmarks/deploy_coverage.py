"""Architectures of the coverage table under the rules of a target: written, loaded, and compared with the simulation.

    python benchmarks/deploy_coverage.py                        # goes on where it was stopped
    python benchmarks/deploy_coverage.py --only resnet vit
    python benchmarks/deploy_coverage.py --page                 # docs/deployment_coverage.md

Random weights and images of noise at W8A8, ranges from extremes: what counts is whether the file can be written, how
many of the layers with weights the runtime computes in integers, and whether its codes are those that were simulated.
One JSON for each architecture in ``benchmarks/results/deploy_coverage/``; each runs in a process of its own.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any

import torch

import clcalib
from architectures import ARCHITECTURES
from clcalib.deployment import deploy
from clcalib.errors import ClcalibError
from clcalib.files import write_atomically
from common import RESULTS, ROOT, provenance
from coverage import prepared

FOLDER = RESULTS / "deploy_coverage"
PAGE = ROOT / "docs" / "deployment_coverage.md"
TARGET = "onnxruntime"
IMAGES, COMPARED = 32, 8


def measured(name: str) -> dict[str, Any]:
    """What became of one architecture; an error of ours is a result."""
    own = ARCHITECTURES[name]
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(IMAGES, 3, own.size, own.size, generator=generator)
    try:
        model = prepared(own.build().eval(), images)
        with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            result = clcalib.quantize(
                model,
                clcalib.CalibrationSet.from_tensor(images),
                recipe=clcalib.recipes.nearest(),
                bits=clcalib.Bits(8, 8),
                weight_range="minmax",
                activation_range="minmax",
                target=TARGET,
                measured_images=0,
            )
            path = Path(folder) / "model.onnx"
            found = deploy(result, path, clcalib.EvaluationSet.from_tensor(images), count=COMPARED).record.deployment
    except ClcalibError as error:
        return {"error": f"{type(error).__name__}: {error}"}
    assert found is not None
    floats: dict[str, int] = {}
    for row in found.in_float:
        floats[row.operation] = floats.get(row.operation, 0) + 1
    return {
        "runtime": found.runtime,
        "integer_layers": found.integer_layers,
        "float_layers": found.float_layers,
        "in_float": floats,
        "max_code_difference": found.max_code_difference,
        "largest_share": max((row.own_share for row in found.tensors), default=0.0),
        "worst": max(found.tensors, key=lambda row: row.own).name if found.tensors else None,
        "bytes": found.file_bytes,
    }


def run(only: list[str]) -> None:
    for name in ARCHITECTURES:
        path = FOLDER / f"{name}.json"
        if path.exists() or not any(part in name for part in only):
            continue
        command = [sys.executable, __file__, "--one", name]
        done = subprocess.run(command, capture_output=True, text=True)
        lines = done.stdout.strip().splitlines() or ["{}"]
        row = json.loads(lines[-1]) if done.returncode == 0 else {"error": f"crashed: {done.stderr[-300:]}"}
        write_atomically(path, (json.dumps({"name": name, **row, **provenance()}, indent=1) + "\n").encode())
        print(name, {key: row[key] for key in row if key not in ("runtime", "bytes")}, flush=True)


def write_page() -> None:
    rows = [json.loads(path.read_text()) for path in sorted(FOLDER.glob("*.json"))]
    good = [row for row in rows if "error" not in row]
    exact = [row for row in good if row["max_code_difference"] <= 1]
    whole = [row for row in good if row["float_layers"] == 0]
    text = (
        "# Architectures on integer kernels\n\n"
        "Written by `benchmarks/deploy_coverage.py` (random weights, W8A8, 32 images of noise; one JSON each in\n"
        "[benchmarks/results/deploy_coverage](../benchmarks/results/deploy_coverage)).\n\n"
        f"{len(good)} of the {len(ARCHITECTURES)} architectures of [coverage.md](coverage.md) are written for "
        f"`{TARGET}` and run;\n{len(rows) - len(good)} failed, {len(ARCHITECTURES) - len(rows)} were not tried.  "
        f"In {len(whole)} of them every "
        f"layer with weights is computed in integers; in {len(exact)} no kernel differs from the simulation by more\n"
        "than one code.\n\n"
        "| architecture | layers in integers | largest difference in codes | operators in float |\n"
        "| --- | --- | --- | --- |\n"
    )
    for row in rows:
        if "error" in row:
            text += f"| {row['name']} | - | - | {row['error'].splitlines()[0][:160]} |\n"
            continue
        layers = row["integer_layers"] + row["float_layers"]
        floats = ", ".join(f"{name} ({count})" for name, count in sorted(row["in_float"].items())) or "none"
        difference = f"{row['max_code_difference']} (in {100 * row['largest_share']:.2g} % of codes)"
        text += f"| {row['name']} | {row['integer_layers']} of {layers} | {difference} | {floats} |\n"
    runtimes = sorted({row["runtime"] for row in good})
    write_atomically(PAGE, (text + f"\n{', '.join(runtimes)}.\n").encode())
    print(PAGE)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", default=[""], help="architectures whose name holds one of these")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    parser.add_argument("--page", action="store_true", help="only write the page")
    arguments = parser.parse_args()
    if arguments.one:
        torch.set_num_threads(1)
        print(json.dumps(measured(arguments.one)))
    elif arguments.page:
        write_page()
    else:
        run(arguments.only)


if __name__ == "__main__":
    main()
