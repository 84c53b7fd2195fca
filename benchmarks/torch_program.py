"""How fast PyTorch computes a network calibrated for the target torch: its program under torch.compile, int8 and float.

Both are compiled by Inductor with frozen weights; the int8 program has oneDNN's integer kernels, put in by torchao's
patterns.  Rounds alternate, so that a slower moment of the machine meets both.

    python benchmarks/torch_program.py --data .data --network resnet20
"""

from __future__ import annotations

import argparse
import re
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch._inductor import config as inductor
from torch._inductor.utils import run_and_get_code

import clcalib
from clcalib.capture.chain import capture
from clcalib.deployment import deploy
from clcalib.export.deployed import write_float
from clcalib.export.program.x86 import load_program, version
from clcalib.quant.targets import target_of
from common import NETWORKS, cifar10, provenance, shuffled, write_result

KERNELS = re.compile(r"onednn\.(q\w+)|mkldnn\._?(\w*(?:convolution|linear)\w*)")
CALIBRATION, EVALUATION, SEED = 256, 1000, 0


@torch.no_grad()
def compiled(path: Path, images: torch.Tensor) -> tuple[Callable[..., Any], dict[str, int]]:
    """A saved program, compiled for the shape of ``images``, and the library kernels that its code calls."""
    torch.compiler.reset()
    version()  # puts torchao's patterns into Inductor
    with inductor.patch(freezing=True):
        program = torch.compile(load_program(path).module(), dynamic=False)
        _, codes = run_and_get_code(program, images)
    found = Counter("".join(match) for match in KERNELS.findall("\n".join(codes)))
    return program, dict(found)


@torch.no_grad()
def milliseconds(function: Callable[..., Any], images: torch.Tensor, calls: int) -> tuple[float, float]:
    """Of one call, the mean of some: as the clock has it, and of the processor."""
    start, cpu_start = time.perf_counter(), time.process_time()
    for _ in range(calls):
        function(images)
    seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - cpu_start
    return 1000 * seconds / calls, 1000 * cpu_seconds / calls


def timed(files: dict[str, Path], images: torch.Tensor, rounds: int, seconds: float) -> dict[str, Any]:
    """Medians over rounds, and the ratio of float to int8 in each."""
    networks = {name: compiled(path, images) for name, path in files.items()}
    calls = {}
    for name, (function, _) in networks.items():
        milliseconds(function, images, 3)
        calls[name] = max(1, round(1000 * seconds / milliseconds(function, images, 3)[1]))
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in networks}
    for _ in range(rounds):
        for name, (function, _) in networks.items():
            times[name].append(milliseconds(function, images, calls[name]))
    found: dict[str, Any] = {"kernels": {name: kernels for name, (_, kernels) in networks.items()}}
    for column, prefix in enumerate(("", "cpu_")):
        slow, fast = ([row[column] for row in times[name]] for name in ("float", "int8"))
        ratios = sorted(left / right for left, right in zip(slow, fast, strict=True))
        found |= {
            f"{prefix}milliseconds": {"float": statistics.median(slow), "int8": statistics.median(fast)},
            f"{prefix}speedup": statistics.median(ratios),
            f"{prefix}lowest": ratios[0],
            f"{prefix}highest": ratios[-1],
        }
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of CIFAR-10")
    parser.add_argument("--network", choices=NETWORKS, default="resnet20")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 64])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=0.5, help="of each round and network")
    arguments = parser.parse_args()
    if not NETWORKS[arguments.network].weights.is_file():
        sys.exit(f"skipped: the public weights of {arguments.network} are not there")
    torch.set_num_threads(1)
    model = NETWORKS[arguments.network].load()
    images, _ = cifar10(arguments.data, "train", shuffled(SEED)[:CALIBRATION])
    evaluation = clcalib.EvaluationSet.from_tensor(*cifar10(arguments.data, "test", torch.arange(EVALUATION)))
    calibration = clcalib.CalibrationSet.from_tensor(images)
    bits, recipe = clcalib.Bits(8, 8), clcalib.recipes.nearest()
    result = clcalib.quantize(
        model, calibration, recipe=recipe, bits=bits, target="torch", seed=SEED, measured_images=0
    )
    with tempfile.TemporaryDirectory() as folder:
        files = {"float": Path(folder) / "float.pt2", "int8": Path(folder) / "int8.pt2"}
        write_float(capture(model, images[:2]), files["float"], target_of("torch"))
        record = deploy(result, files["int8"], evaluation).record.deployment
        assert record is not None
        rows = {
            str(size): timed(files, images[:size], arguments.rounds, arguments.seconds) for size in arguments.batches
        }
    deployment = record.model_dump(exclude={"tensors"})
    settings = {"network": arguments.network, "bits": "W8A8", "recipe": recipe.name, "seed": SEED}
    settings |= {"calibration_images": CALIBRATION, "rounds": arguments.rounds}
    found = {**settings, "deployment": deployment, "batches": rows, **provenance(lowered_by=version())}
    print(write_result("torch_program", found))
    for size, row in rows.items():
        print(
            f"batch {size}: {row['speedup']:.2f} x ({row['lowest']:.2f} .. {row['highest']:.2f}), "
            f"CPU time {row['cpu_speedup']:.2f} x"
        )


if __name__ == "__main__":
    main()
