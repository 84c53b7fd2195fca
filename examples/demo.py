"""``make demo``: the embedded ResNet-20 at W4A4 and W2A2, nearest rounding, QDrop, and QDrop with the contrastive term.

Each run leaves a folder under ``runs/demo`` with the model, ``run.json`` and ``config.json``.  The steps are far fewer
than the paper's 20,000 for each unit, so that all of it ends within minutes.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import time
from pathlib import Path

from rich.console import Console

from clcalib.cli.progress import observer_for
from clcalib.config import build
from clcalib.config_sections import RunConfig
from clcalib.config_sources import merge, read_toml
from clcalib.files import write_atomically
from clcalib.report.record import RunRecord
from clcalib.report.tables import summary_table
from clcalib.run import run

CONFIG = Path(__file__).parent / "demo" / "demo.toml"
STEPS = {"W4A4": 40, "W2A2": 200}


def demo_run(name: str, widths: str, changes: dict[str, object], out: Path, console: Console) -> RunRecord:
    """One run of the demonstration; the policy table and the units are shown as by ``clcalib quantize``."""
    weights, activations = int(widths[1]), int(widths[3])
    table = merge(
        read_toml(CONFIG),
        {
            "quantization": {"weights": weights, "activations": activations},
            "recipe": {"name": "qdrop", "steps": STEPS[widths]},
            "run": {"out": str(out / name), "overwrite": True},
        },
        changes,
    )
    config = build(RunConfig, table, str(CONFIG))
    console.rule(name)
    with observer_for(console, console) as observer:
        return run(config, observer)


def table_as_json(records: list[RunRecord], seconds: float) -> bytes:
    """The numbers of the table and where they were measured."""
    fields = ("float_top1", "nearest_top1", "quantized_top1", "agreement", "weight_bits", "activation_bits", "recipe")
    more = ("contrastive", "seed", "steps_per_unit", "seconds", "threads", "versions")
    runs = [record.model_dump(mode="json", include={*fields, *more}) for record in records]
    machine = f"{platform.machine()}, {os.cpu_count()} cores"
    commit = subprocess.run(["git", "describe", "--always", "--dirty"], capture_output=True, text=True).stdout.strip()
    result = {"runs": runs, "seconds": round(seconds), "machine": machine, "commit": commit}
    return (json.dumps(result, indent=1) + "\n").encode()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/demo"), help="folder of the results")
    parser.add_argument("--record", type=Path, help="also write the table as JSON to this file")
    arguments = parser.parse_args()
    console, start = Console(), time.perf_counter()
    records = []
    for widths in STEPS:
        name = widths.lower()
        records.append(demo_run(f"{name}-qdrop", widths, {}, arguments.out, console))
        contrastive = {"contrastive": {"interval": 4}}
        records.append(demo_run(f"{name}-qdrop-contrastive", widths, contrastive, arguments.out, console))
    console.print(summary_table(records, title="ResNet-20 on CIFAR-10, 2,000 test images"))
    steps = ", ".join(f"{count} steps for each unit at {widths}" for widths, count in STEPS.items())
    console.print(f"{steps}; the papers use 20,000.", highlight=False)
    console.print(f"Models, records and settings: {arguments.out}/*/", highlight=False)
    seconds = time.perf_counter() - start
    console.print(f"{seconds:.0f} s in all", highlight=False)
    if arguments.record is not None:
        write_atomically(arguments.record, table_as_json(records, seconds))


if __name__ == "__main__":
    main()
