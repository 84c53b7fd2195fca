"""What all benchmarks share: the networks, CIFAR-10, where a number was measured, and how it is written down."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import nn

from clcalib.data.cifar10 import MEAN, STANDARD_DEVIATION, read_cifar10
from clcalib.files import write_atomically

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
sys.path.insert(0, str(ROOT / "examples"))

from demo_network import resnet20  # noqa: E402 - its folder is put on the path above


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


def public_weights() -> Path:
    """The public CIFAR-10 weights of ResNet-20, which are no part of the project."""
    return ROOT.parent / "shared" / "assets" / "cifar10-resnet" / "resnet20.safetensors"


def network(weights: Path) -> nn.Module:
    model = resnet20()
    model.load_state_dict(load_file(weights))
    return model.eval()


def cifar10(folder: Path, split: str, indices: torch.Tensor | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    """Normalised images (N, 3, 32, 32) and labels (N,)."""
    images, labels = read_cifar10(folder, split)
    if indices is not None:
        images, labels = images[indices], labels[indices]
    mean, deviation = (torch.tensor(values).view(1, 3, 1, 1) for values in (MEAN, STANDARD_DEVIATION))
    return (images.float() / 255 - mean) / deviation, labels
