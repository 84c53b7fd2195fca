"""Quantize the ImageNet networks, or what is missing of it.  Stop it at any time and start it again.

    python benchmarks/imagenet/run.py                                     # all of it: weeks on a processor
    python benchmarks/imagenet/run.py --networks mobilenet_v2 --only w2a4-qdrop --steps 100 --images 256

Each run is one JSON in ``benchmarks/results/imagenet/steps-STEPS-images-IMAGES/NETWORK/``.  Weights and images are no
part of the project; networks that cannot be run are told at the start.  Set MALLOC_MMAP_THRESHOLD_=400000000,
MALLOC_TRIM_THRESHOLD_=3000000000 and MALLOC_TOP_PAD_=200000000 (glibc): buffers of the size of a batch are otherwise
given back to the system and cleared again at each use, which takes as long as all else.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from clcalib.files import write_atomically
from imagenet.grid import CALIBRATION_IMAGES, SEEDS, STEPS, cells
from imagenet.networks import NETWORKS
from imagenet.one import FOLDER, reason, run_cell
from run_files import claimed, path_of
from study.grid import Cell


def jobs(arguments: argparse.Namespace) -> list[tuple[int, Cell]]:
    """Network by network, seed by seed, so that what there is at any time is of as many cells as possible."""
    chosen = []
    for network in arguments.networks:
        why = reason(network)
        if why is not None:
            print(f"skipped: {network}: {why}", flush=True)
            continue
        own = cells(network, arguments.steps, arguments.images)
        wanted = [cell for word in arguments.only for cell in own if word in f"{cell.name}/"]
        chosen += [(seed, cell) for seed in arguments.seeds for cell in {cell.key: cell for cell in wanted}.values()]
    return chosen


def run(arguments: argparse.Namespace) -> None:
    torch.set_num_threads(1)
    chosen, end = jobs(arguments), time.monotonic() + 3600 * arguments.hours
    todo = [(seed, cell) for seed, cell in chosen if not path_of(cell.key, seed, FOLDER).exists()]
    print(f"{len(todo)} of {len(chosen)} runs are to be done", flush=True)
    for seed, cell in todo:
        if time.monotonic() > end:
            print("the time is over", flush=True)
            return
        path = path_of(cell.key, seed, FOLDER)
        with claimed(path) as is_ours:
            if is_ours:
                row = run_cell(cell, seed, arguments.precision, arguments.spill_folder)
                write_atomically(path, (json.dumps(row) + "\n").encode())
                numbers = f"{row['top1']:.1f} of {row['float_top1']:.1f}, agrees {row['agreement']:.1f}"
                print(f"{cell.key} seed {seed}: {numbers} ({row['cpu_seconds']} CPU s)", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--seeds", type=int, nargs="+", default=list(SEEDS))
    only = "run only cells whose name, with / at its end, holds one of these, and in this order"
    parser.add_argument("--only", nargs="+", default=[""], help=only)
    parser.add_argument("--steps", type=int, default=STEPS, help="for each unit and phase")
    parser.add_argument("--images", type=int, default=CALIBRATION_IMAGES, help="to calibrate, 1,000 at most")
    parser.add_argument("--precision", choices=("float32", "bfloat16"), default="float32", help="of convolutions")
    parser.add_argument("--spill-folder", type=Path, help="for what does not fit in 1 GB of memory")
    parser.add_argument("--hours", type=float, default=float("inf"), help="start no run after so many")
    run(parser.parse_args())


if __name__ == "__main__":
    main()
