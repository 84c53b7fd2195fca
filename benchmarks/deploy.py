"""What a deployed network is worth: speed, size, accuracy and exactness in the runtime that executes it.

    python benchmarks/deploy.py run --data DATA                # CIFAR-10; goes on where it was stopped
    python benchmarks/deploy.py run --data DATA --only mobilenet_v2-onnxruntime
    python benchmarks/deploy.py run --data DATA --without-vnni  # what overflows on a processor that has none
    python benchmarks/deploy.py summary                        # benchmarks/results/deploy.json and docs/deployment.md

Each cell calibrates a network under the rules of a target, writes the file, compares runtime and simulation code by
code, and times the file against the float network's in the same runtime, in turn.  One JSON for each cell in
``benchmarks/results/deploy/``.  Speed is that of this machine: read the ratios, on a machine with nothing else to do.
The public weights and images are no part of the project; cells that need what is not there are skipped.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import clcalib
from clcalib.calibrate.recipes import RECIPES
from clcalib.data.sources import load_calibration
from clcalib.deployment import deploy
from clcalib.evaluate.accuracy import logits, top1
from clcalib.export.deployed import write_float
from clcalib.export.runtimes import read_model
from clcalib.export.runtimes.bench import bench
from clcalib.export.runtimes.runtime import RUNTIMES
from clcalib.files import write_atomically
from clcalib.processor import adds_in_16_bits
from clcalib.quant.targets import target_of
from common import NETWORKS, RESULTS, all_images, provenance, shuffled
from imagenet.networks import NETWORKS as IMAGENET
from imagenet.one import IMAGES, labelled, reason

FOLDER = RESULTS / "deploy"
WITHOUT_VNNI = RESULTS / "deploy_without_vnni"
TARGETS = ("onnxruntime", "openvino")
PROVENANCE = provenance()  # at the start: the tree may change while the runs go on


@dataclasses.dataclass(frozen=True)
class Cell:
    """A network at a pair of widths, for a target."""

    network: str
    target: str
    weights: int
    activations: int
    recipe: str = "nearest"

    @property
    def name(self) -> str:
        return f"{self.network}-{self.target}-w{self.weights}a{self.activations}-{self.recipe}"

    @property
    def is_large(self) -> bool:
        return self.network in IMAGENET


@dataclasses.dataclass(frozen=True)
class Pictures:
    """Calibration images, and labelled ones that took no part."""

    calibration: Tensor
    tests: Tensor
    labels: Tensor


def runtime_of(target: str) -> str:
    """The runtime that executes the file of a target."""
    found = target_of(target)
    assert found is not None
    assert found.runtime is not None
    return found.runtime


def cells() -> list[Cell]:
    """Every width on ResNet-20; 8 bits, and 4-bit weights, on the larger ones."""
    small = [
        Cell("resnet20", target, *widths, recipe)
        for widths, recipe in (((8, 8), "nearest"), ((4, 8), "fast"), ((4, 4), "fast"), ((2, 4), "fast"))
        for target in TARGETS
    ]
    large = ("mobilenet_v2", "efficientnet_lite0", "resnet50_v1")
    return small + [Cell(network, target, 8, 8) for network in large for target in TARGETS]


def cells_without_vnni() -> list[Cell]:
    """ResNet-20 with 8 bits, with 7 of 8 for weights, and with 4 where the first and the last layer have 7 of 8."""
    wide = [Cell("resnet20", f"{target}{ending}", 8, 8) for target in TARGETS for ending in ("", "-avx2")]
    return wide + [Cell("resnet20", f"{target}-avx2", 4, 4, "fast") for target in TARGETS]


def network_of(cell: Cell) -> nn.Module:
    return IMAGENET[cell.network].load() if cell.is_large else NETWORKS[cell.network].load()


def missing(cell: Cell) -> str | None:
    """Why a cell cannot be run here, or None."""
    if cell.is_large:
        return reason(cell.network)
    return None if NETWORKS[cell.network].weights.is_file() else "the public weights are not there"


@functools.lru_cache(maxsize=1)
def pictures(network: str, is_large: bool, data: Path, count: int, tests: int) -> Pictures:
    if is_large:
        own = IMAGENET[network]
        images = load_calibration(IMAGES / "calibration", transform=own.transform, count=count, seed=0).images
        return Pictures(images, *labelled("evaluation", own.evaluation_transform, tests))
    images, _ = all_images(data, "train")
    held, labels = (tensor[:tests] for tensor in all_images(data, "test"))
    return Pictures(images[shuffled(0)[:count]], held, labels)


def run_cell(cell: Cell, arguments: argparse.Namespace) -> dict[str, Any]:
    """Calibrate, write, compare, look at the kernels, and time."""
    model = network_of(cell)
    count, tests, checked, rounds = (128, 300, 64, 5) if cell.is_large else (1024, 10_000, 1000, 15)
    found = pictures(cell.network, cell.is_large, arguments.data, count, tests)
    evaluation = clcalib.EvaluationSet.from_tensor(found.tests, found.labels)
    start = time.process_time()
    result = clcalib.quantize(
        model,
        clcalib.CalibrationSet.from_tensor(found.calibration),
        recipe=RECIPES[cell.recipe](),
        bits=clcalib.Bits(cell.weights, cell.activations),
        target=cell.target,
        measured_images=0,
        is_guarded=False,
    )
    seconds = time.process_time() - start
    runtime = RUNTIMES[runtime_of(cell.target)]
    with tempfile.TemporaryDirectory() as folder:
        files = Path(folder) / "float.onnx", Path(folder) / "quantized.onnx"
        record = deploy(result, files[1], evaluation, count=checked).record.deployment
        assert record is not None
        write_float(clcalib.capture(model, found.calibration[:2]), files[0])
        outputs = [
            logits(network, found.tests, batch_size=50)
            for network in (model, runtime.session(read_model(files[1])).network())
        ]
        settings = {"batches": arguments.batches, "threads": arguments.threads, "rounds": rounds}
        timed = bench(*files, runtime_of(cell.target), **settings)
    accuracies = [round(100 * top1(each, found.labels), 2) for each in outputs]
    return {
        "cell": cell.name,
        **dataclasses.asdict(cell),
        "runtime": record.runtime,
        "float_top1": accuracies[0],
        "top1": accuracies[1],
        "test_images": len(found.tests),
        "calibration_images": len(found.calibration),
        "top1_simulated": record.top1_simulated,
        "top1_runtime": record.top1_runtime,
        "same_class": record.agreement,
        "compared_images": record.images,
        "max_code_difference": record.max_code_difference,
        "share_of_codes": max(row.own_share for row in record.tensors),
        "integer_layers": record.integer_layers,
        "float_layers": record.float_layers,
        "in_float": [row.model_dump() for row in record.in_float],
        "size_ratio": round(timed.float_size.file / timed.quantized_size.file, 2),
        "bytes": timed.quantized_size.file,
        "peak_memory": [timed.float_size.peak, timed.quantized_size.peak],
        "int8_speedup": {f"batch {t.batch}, {t.threads} threads": round(t.speedup, 2) for t in timed.timings},
        "timings": [dataclasses.asdict(timing) for timing in timed.timings],
        "cpu_seconds": round(seconds, 1),
        **PROVENANCE,
    }


def run(arguments: argparse.Namespace) -> None:
    torch.set_num_threads(1)
    folder, wanted = (WITHOUT_VNNI, cells_without_vnni()) if arguments.without_vnni else (FOLDER, cells())
    if arguments.without_vnni and not adds_in_16_bits():
        raise SystemExit("this processor has VNNI, or does not tell what it has")
    for cell in wanted:
        path = folder / f"{cell.name}.json"
        if path.exists() or not any(part in cell.name for part in arguments.only):
            continue
        if why := missing(cell):
            print(f"skipped: {cell.name}: {why}")
            continue
        row = run_cell(cell, arguments)
        write_atomically(path, (json.dumps(row, indent=1) + "\n").encode())
        print(f"{cell.name}: {row['top1']} of {row['float_top1']} %, {row['size_ratio']}x smaller, "
              f"{row['int8_speedup']}, codes differ by {row['max_code_difference']}", flush=True)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    running = commands.add_parser("run", help="the cells that are not there yet")
    running.add_argument("--data", type=Path, required=True, help="folder with CIFAR-10 (clcalib data cifar10)")
    running.add_argument("--only", nargs="+", default=[""], help="cells whose name holds one of these")
    running.add_argument("--batches", type=int, nargs="+", default=[1, 64])
    running.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    running.add_argument("--without-vnni", action="store_true", help="the cells of a processor without VNNI")
    running.set_defaults(command=run)
    page = commands.add_parser("summary", help="write deploy.json and the page")
    page.set_defaults(command=lambda arguments: write_page())
    arguments = parser.parse_args()
    arguments.command(arguments)


def write_page() -> None:
    from deploy_page import write

    write(FOLDER, WITHOUT_VNNI)


if __name__ == "__main__":
    main()
