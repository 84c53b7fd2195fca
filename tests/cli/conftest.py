"""A tiny network in a file, its weights, images and a TOML: what a user has before the first command."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

NETWORK = """
from torch import nn

def build(width=4):
    return nn.Sequential(
        nn.Conv2d(3, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU(),
        nn.Conv2d(width, width, 3, padding=1), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 3),
    )
"""

TOML = """
[model]
entry = "net.py:build"
weights = "net.safetensors"
[data]
calibration = "calibration.safetensors"
evaluation = "evaluation.safetensors"
count = 32
[recipe]
name = "qdrop"
steps = 12
"""


def weights(generator: torch.Generator) -> dict[str, torch.Tensor]:
    """Random weights for the network above, with ordinary batch statistics."""
    shapes = {"0.weight": (4, 3, 3, 3), "3.weight": (4, 4, 3, 3), "7.weight": (3, 4), "7.bias": (3,)}
    state = {name: torch.randn(shape, generator=generator) / 3 for name, shape in shapes.items()}
    state |= {name: torch.zeros(4) for name in ("0.bias", "1.bias", "1.running_mean", "3.bias")}
    return state | {name: torch.ones(4) for name in ("1.weight", "1.running_var")}


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, exported_once: None) -> Path:
    """The folder with all of it, which is the current one; narrow, as a terminal is.

    The network is exported once for all tests of a process.
    """
    generator = torch.Generator().manual_seed(0)
    (tmp_path / "net.py").write_text(NETWORK)
    (tmp_path / "run.toml").write_text(TOML)
    save_file(weights(generator), tmp_path / "net.safetensors")
    save_file({"images": torch.randn(32, 3, 8, 8, generator=generator)}, tmp_path / "calibration.safetensors")
    labels = torch.randint(0, 3, (20,), generator=generator)
    images = torch.randn(20, 3, 8, 8, generator=generator)
    save_file({"images": images, "labels": labels}, tmp_path / "evaluation.safetensors")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.delenv("CLCALIB_DEBUG", raising=False)
    return tmp_path
