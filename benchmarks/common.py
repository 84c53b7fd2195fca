"""What all benchmarks share: the networks, CIFAR-10, where a number was measured, and how it is written down."""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import platform
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import nn

from clcalib.data.cifar10 import MEAN, STANDARD_DEVIATION, read_cifar10
from clcalib.files import write_atomically

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
ASSETS = ROOT.parent / "shared" / "assets"  # public weights and images, which are no part of the project
sys.path.insert(0, str(ROOT / "examples"))

from demo_network import resnet20, resnet56  # noqa: E402 - its folder is put on the path above
from mobilenetv2 import mobilenetv2  # noqa: E402


def provenance(**more: Any) -> dict[str, Any]:
    """Versions, machine and commit, to stand beside every result."""
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "machine": f"{platform.machine()}, {processor()}, {os.cpu_count()} cores",
        "threads": torch.get_num_threads(),
        "commit": COMMIT,
        **more,
    }


def processor() -> str:
    """The processor's name."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or "unknown processor"


def commit() -> str:
    """The commit that is checked out, with a mark where the tree differs from it."""
    run = subprocess.run(["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True)
    return run.stdout.strip() or "unknown"


COMMIT = commit()  # read at the start: the tree may change while a benchmark runs


def write_result(name: str, result: dict[str, Any]) -> Path:
    """Write ``benchmarks/results/NAME.json``."""
    path = RESULTS / f"{name}.json"
    write_atomically(path, (json.dumps(result, indent=1) + "\n").encode())
    return path


def public_weights(name: str = "resnet20") -> Path:
    """The public CIFAR-10 weights of ResNet-20 and ResNet-56, which are no part of the project."""
    return ASSETS / "cifar10-resnet" / f"{name}.safetensors"


def network(weights: Path, build: Callable[[], nn.Module] = resnet20) -> nn.Module:
    """The network with its weights, in eval mode; counters of batches may be missing in the file."""
    model = build()
    counters = {name: tensor for name, tensor in model.state_dict().items() if name.endswith("num_batches_tracked")}
    model.load_state_dict(counters | {name: tensor.float() for name, tensor in load_file(weights).items()})
    return model.eval()


@dataclasses.dataclass(frozen=True)
class Network:
    """A trained network for CIFAR-10."""

    build: Callable[[], nn.Module]
    weights: Path

    def load(self) -> nn.Module:
        return network(self.weights, self.build)


NETWORKS = {
    "resnet20": Network(resnet20, public_weights("resnet20")),
    "resnet56": Network(resnet56, public_weights("resnet56")),
    "demo": Network(resnet20, ROOT / "examples" / "demo" / "resnet20.safetensors"),
    "mobilenetv2": Network(mobilenetv2, ROOT / "benchmarks" / "networks" / "mobilenetv2.safetensors"),
}


def cifar10(folder: Path, split: str, indices: torch.Tensor | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    """Normalised images (N, 3, 32, 32) and labels (N,)."""
    images, labels = read_cifar10(folder, split)
    if indices is not None:
        images, labels = images[indices], labels[indices]
    mean, deviation = (torch.tensor(values).view(1, 3, 1, 1) for values in (MEAN, STANDARD_DEVIATION))
    return (images.float() / 255 - mean) / deviation, labels


@functools.cache
def all_images(folder: Path, split: str) -> tuple[torch.Tensor, torch.Tensor]:
    """``cifar10`` of a whole split, read once."""
    return cifar10(folder, split)


def shuffled(seed: int, count: int = 50_000) -> torch.Tensor:
    """The training images in the order of a seed: calibration images are the first, images to select on the last."""
    return torch.randperm(count, generator=torch.Generator().manual_seed(seed))
