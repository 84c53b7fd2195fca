"""Run the study, or what is missing of it.  Stop it at any time and start it again; several may run at once.

    python benchmarks/study/run.py --data DATA
    python benchmarks/study/run.py --data DATA --part ablations --only temperature --hours 2

Each run is one JSON in ``benchmarks/results/study/PART/NETWORK/``.  ResNet-20 and ResNet-56 need the public weights,
which are no part of the project; cells that cannot be run are told at the start.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from common import NETWORKS
from run_files import claimed, path_of
from study.grid import NETWORK_NAMES, PARTS, SEEDS, STEPS, Cell, hosts
from study.one import FOLDER, finish


def reason(cell: Cell) -> str | None:
    """Why the cell cannot be run here, or None."""
    if not NETWORKS[cell.network].weights.is_file():
        return f"{NETWORKS[cell.network].weights.name} is not there"
    return cell.missing()


def jobs(arguments: argparse.Namespace) -> list[tuple[int, Cell]]:
    """Seed by seed, so that what there is at any time is of as many cells as possible."""
    found: dict[tuple[int, str], Cell] = {}
    for part in arguments.part:
        for cell in PARTS[part](arguments.steps):
            is_wanted = any(word in cell.key for word in arguments.only)
            is_wanted = is_wanted and not any(word in cell.key for word in arguments.without)
            if cell.network in arguments.networks and is_wanted:
                for seed in arguments.seeds or SEEDS[part]:
                    found.setdefault((seed, cell.key), cell)
    return [(seed, cell) for (seed, _), cell in sorted(found.items(), key=lambda item: item[0][0])]


def nearest_of(cell: Cell) -> Cell | None:
    """The cell of nearest rounding on the same network and at the same widths; None for itself."""
    same = (cell.network, "nearest", cell.weights, cell.activations)
    found = (other for other in hosts() if (other.network, other.host, other.weights, other.activations) == same)
    return None if cell.host == "nearest" else next(found)


def run(arguments: argparse.Namespace) -> None:
    torch.set_num_threads(1)
    chosen, end = jobs(arguments), time.monotonic() + 3600 * arguments.hours
    skipped = {cell.key: why for _, cell in chosen if (why := reason(cell)) is not None}
    for why in sorted(set(skipped.values())):
        print(f"skipped: {list(skipped.values()).count(why)} cells: {why}", flush=True)
    todo = [
        (seed, cell)
        for seed, cell in chosen
        if cell.key not in skipped and not path_of(cell.key, seed, FOLDER).exists()
    ]
    print(f"{len(todo)} of {len(chosen)} runs are to be done", flush=True)
    for seed, cell in todo:
        if time.monotonic() > end:
            print("the time is over", flush=True)
            return
        with claimed(path_of(cell.key, seed, FOLDER)) as is_ours:
            if is_ours:
                row = finish(cell, seed, arguments.data, nearest_of(cell), arguments.precision)
                print(f"{cell.key} seed {seed}: {row['test_top1']:.2f} ({row['cpu_seconds']} CPU s)", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with CIFAR-10 (clcalib data cifar10)")
    parser.add_argument("--part", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--networks", nargs="+", choices=NETWORK_NAMES, default=list(NETWORK_NAMES))
    parser.add_argument("--seeds", type=int, nargs="+", help="by default those declared for the part")
    parser.add_argument("--only", nargs="+", default=[""], help="run only cells whose key holds one of these")
    parser.add_argument("--without", nargs="+", default=[], help="and none whose key holds one of these")
    parser.add_argument("--steps", type=int, default=STEPS, help="another number goes to folders of its own")
    precision = (
        "of convolutions; a name, so that a busy machine does not choose for some runs otherwise than for others"
    )
    parser.add_argument("--precision", choices=("float32", "bfloat16"), default="bfloat16", help=precision)
    parser.add_argument("--hours", type=float, default=float("inf"), help="start no run after so many")
    run(parser.parse_args())


if __name__ == "__main__":
    main()
