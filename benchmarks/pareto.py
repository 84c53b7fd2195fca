"""Accuracy against the size of the weights, with one width for all layers and with widths chosen within a budget.

    python benchmarks/pareto.py run --data DATA --part 0/2
    python benchmarks/pareto.py summary
    pip install matplotlib && python benchmarks/pareto.py plot     # docs/images/pareto.svg

ResNet-20 with public weights (without these, the embedded network), CIFAR-10, activations 8 bits, first and last layer
8 bits.  A budget is a mean width: at 3.5 it has the bytes halfway between W3 and W4 everywhere, at 3 exactly those of
W3, so a mixed network stands right above or below the uniform one.  Each run is one JSON in
``benchmarks/results/pareto/NETWORK/``, and a run that is there is not repeated.  Calibration images are training
images, chosen by the seed; nothing is chosen on the test images.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import sys
import time
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import torch

import clcalib
from clcalib.calibrate.recipes import RECIPES
from clcalib.evaluate.accuracy import logits, top1
from clcalib.files import write_atomically
from clcalib.quant.cost import layer_bytes
from clcalib.quant.insert import chain_policy
from common import NETWORKS, RESULTS, ROOT, all_images, provenance, shuffled
from plots import load_pyplot
from run_files import claimed, path_of

IMAGE = ROOT / "docs" / "images" / "pareto.svg"
ACTIVATIONS = 8
UNIFORM = (2, 3, 4, 5, 6, 7, 8)
MEANS = (2.25, 2.5, 3, 3.5, 4, 5)
HOSTS = ("nearest", "fast")
KINDS = {"uniform": "one width", "unit": "a width for each unit", "layer": "a width for each layer"}
PROVENANCE = provenance()  # at the start: the tree may change while the runs go on


@dataclasses.dataclass(frozen=True)
class Cell:
    """One recipe at one width, or within the bytes that a mean width has; ``kind`` is one of ``KINDS``."""

    recipe: str
    kind: str
    width: float

    @property
    def name(self) -> str:
        return f"{self.recipe}-{self.kind}-w{self.width:g}"


def cells() -> list[Cell]:
    uniform = [Cell(recipe, "uniform", width) for recipe in HOSTS for width in UNIFORM]
    return uniform + [Cell(recipe, kind, width) for recipe in HOSTS for kind in ("unit", "layer") for width in MEANS]


def default_network() -> str:
    return "resnet20" if NETWORKS["resnet20"].weights.is_file() else "demo"


@functools.cache
def uniform_bytes(network: str, width: int) -> int:
    """The bytes of all weights at one width, as the checkpoint has them."""
    chain = clcalib.capture(NETWORKS[network].load(), torch.zeros(2, 3, 32, 32))
    return sum(layer_bytes(chain, chain_policy(chain, clcalib.Bits(width, ACTIVATIONS))).values())


def mean_bytes(network: str, width: float) -> int:
    """Between the two widths next to it, in proportion."""
    low = int(width)
    share, least = width - low, uniform_bytes(network, low)
    return least if share == 0 else int(least + share * (uniform_bytes(network, low + 1) - least))


@functools.cache
def float_top1(network: str, data: Path, count: int) -> float:
    """Of the float network, on the first ``count`` test images."""
    tests, labels = (tensor[:count] for tensor in all_images(data, "test"))
    return 100 * top1(logits(NETWORKS[network].load(), tests), labels)


def run_cell(cell: Cell, seed: int, arguments: argparse.Namespace) -> dict[str, Any]:
    """One run; the test images give the number and nothing else."""
    model = NETWORKS[arguments.network].load()
    pictures, _ = all_images(arguments.data, "train")
    tests, labels = (tensor[: arguments.tests] for tensor in all_images(arguments.data, "test"))
    calibration = clcalib.CalibrationSet.from_tensor(pictures[shuffled(seed)[: arguments.images]])
    options = {} if cell.recipe == "nearest" or arguments.steps is None else {"steps": arguments.steps}
    settings = {"recipe": RECIPES[cell.recipe](**options), "seed": seed, "measured_images": 0}
    start = time.process_time()
    if cell.kind == "uniform":
        result = clcalib.quantize(model, calibration, bits=clcalib.Bits(int(cell.width), ACTIVATIONS), **settings)
        size = uniform_bytes(arguments.network, int(cell.width))
    else:
        budget = clcalib.Budget(size=mean_bytes(arguments.network, cell.width), per=cell.kind)
        result = clcalib.quantize_to_budget(
            model, calibration, bits=clcalib.Bits(8, ACTIVATIONS), budget=budget, **settings
        )
        assert result.record.budget is not None
        size = result.record.budget.size
    seconds = time.process_time() - start
    budgeted = result.record.budget
    return {
        "cell": cell.name,
        "settings": {**dataclasses.asdict(cell), "steps": result.record.steps_per_unit},
        "network": arguments.network,
        "seed": seed,
        "bytes": size,
        "top1": 100 * top1(logits(result.model, tests), labels),
        "float_top1": float_top1(arguments.network, arguments.data, arguments.tests),
        "test_images": len(tests),
        "calibration_images": len(calibration),
        "budget": None if budgeted is None else budgeted.model_dump(),
        "cpu_seconds": round(seconds, 1),
        **PROVENANCE,
    }


def run(arguments: argparse.Namespace) -> None:
    torch.set_num_threads(1)
    index, parts = (int(number) for number in arguments.part.split("/"))
    chosen = [cell for cell in cells() if any(part in cell.name for part in arguments.only)]
    jobs = [(seed, cell) for seed in arguments.seeds for cell in chosen]
    for seed, cell in jobs[index::parts]:
        path = path_of(cell.name, seed, arguments.results / "pareto" / arguments.network)
        with claimed(path) as is_mine:
            if not is_mine:
                continue
            row = run_cell(cell, seed, arguments)
            write_atomically(path, (json.dumps(row) + "\n").encode())
        print(f"{cell.name} seed {seed}: {row['bytes']:,} bytes, {row['top1']:.2f} % ({row['cpu_seconds']} CPU s)",
              flush=True)  # fmt: skip


def summary(arguments: argparse.Namespace) -> None:
    """One row for each cell of each network, in ``pareto.json``."""
    networks: dict[str, dict[str, Any]] = {}
    for path in sorted((arguments.results / "pareto").glob("*/*.json")):
        row = json.loads(path.read_text())
        networks.setdefault(row["network"], {}).setdefault(row["cell"], []).append(row)
    found = {network: {name: summarise(rows) for name, rows in own.items()} for network, own in networks.items()}
    path = arguments.results / "pareto.json"
    write_atomically(path, (json.dumps({"networks": found, **PROVENANCE}, indent=1) + "\n").encode())
    print(path)
    for network, own in found.items():
        for name, row in own.items():
            print(f"{network} {name:24} {row['bytes']:>9,.0f} bytes {row['mean']:6.2f} (n={row['n']})")


def summarise(rows: list[dict[str, Any]]) -> dict[str, Any]:
    values = [row["top1"] for row in rows]
    return {
        "settings": rows[0]["settings"],
        "seeds": [row["seed"] for row in rows],
        "bytes": fmean(row["bytes"] for row in rows),
        "top1": [round(value, 2) for value in values],
        "mean": round(fmean(values), 2),
        "deviation": round(stdev(values), 2) if len(values) > 1 else 0.0,
        "n": len(values),
        "float_top1": rows[0]["float_top1"],
        "test_images": rows[0]["test_images"],
        "cpu_seconds": round(fmean(row["cpu_seconds"] for row in rows), 1),
        "commits": sorted({row["commit"] for row in rows}),
        "machines": sorted({f"torch {row['torch']}, {row['machine']}" for row in rows}),
    }


# Told apart in grey and by the colour-blind (Okabe and Ito), and by the shape of the mark.
STYLES = {"uniform": ("#777777", "o", "-"), "unit": ("#D55E00", "s", "--"), "layer": ("#0072B2", "^", ":")}


def plot(arguments: argparse.Namespace) -> None:
    """One panel for each recipe; lines join the means over seeds, bands go from the least to the largest."""
    path = arguments.results / "pareto.json"
    networks = json.loads(path.read_text())["networks"] if path.is_file() else {}
    network = next((name for name in ("resnet20", "demo") if name in networks), None)
    if network is None:
        sys.exit("there are no runs yet; run benchmarks/pareto.py run and summary first")
    plt = load_pyplot()
    figure, panels = plt.subplots(1, len(HOSTS), figsize=(11, 4.4), layout="constrained")
    for axes, recipe in zip(panels, HOSTS, strict=True):
        rows = [row for row in networks[network].values() if row["settings"]["recipe"] == recipe]
        for kind, (colour, mark, line) in STYLES.items():
            own = sorted((row for row in rows if row["settings"]["kind"] == kind), key=lambda row: row["bytes"])
            x = [row["bytes"] / 1000 for row in own]
            lows, highs = [min(row["top1"]) for row in own], [max(row["top1"]) for row in own]
            axes.fill_between(x, lows, highs, color=colour, alpha=0.18, linewidth=0)
            axes.plot(x, [row["mean"] for row in own], color=colour, marker=mark, linestyle=line, label=KINDS[kind])
        axes.axhline(rows[0]["float_top1"] if rows else 0, color="black", linewidth=0.8, label="float")
        axes.set(title=recipe, xlabel="weights in the checkpoint, kB")
        axes.tick_params(axis="y", length=0)
    panels[0].set_ylabel("top-1 on the test images, %")
    panels[-1].legend(frameon=False, loc="lower right")
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(arguments.out, facecolor="white", metadata={"Date": None} if arguments.out.suffix == ".svg" else {})
    print(arguments.out)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    runner = commands.add_parser("run", help="run what is missing")
    runner.add_argument("--data", type=Path, required=True, help="folder with CIFAR-10 (clcalib data cifar10)")
    runner.add_argument("--network", choices=("resnet20", "demo"), default=default_network())
    runner.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    runner.add_argument("--part", default="0/1", help="K/N: every N-th job from K on, to use several cores")
    runner.add_argument("--only", nargs="+", default=[""], help="run only cells whose name holds one of these")
    runner.add_argument("--images", type=int, default=1024, help="calibration images")
    runner.add_argument("--tests", type=int, default=10_000, help="test images, the first ones")
    runner.add_argument("--steps", type=int, help="steps for each unit; by default the recipe's")
    runner.set_defaults(function=run)
    drawer = commands.add_parser("plot", help="draw the summary")
    drawer.add_argument("--out", type=Path, default=IMAGE, help="an .svg, .png or .pdf file")
    drawer.set_defaults(function=plot)
    summariser = commands.add_parser("summary", help="write pareto.json")
    summariser.set_defaults(function=summary)
    for command in (runner, drawer, summariser):
        command.add_argument("--results", type=Path, default=RESULTS, help="another folder of results")
    arguments = parser.parse_args()
    arguments.function(arguments)


if __name__ == "__main__":
    main()
