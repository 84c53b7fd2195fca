"""Features of test images, float and quantized with and without the term, for a plot.

    python benchmarks/study/features.py --data DATA

QDrop, ResNet-20, W2A2, seed 0, as in the grid.  The features in front of the classifier are projected on the two main
axes of the float ones and written to ``benchmarks/results/study_features.json``.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import clcalib
from clcalib.capture.chain import capture
from clcalib.capture.running import advance
from clcalib.objectives.keys import as_vectors
from common import NETWORKS, cifar10, provenance, write_result
from study.grid import ablation
from study.one import images_of

COUNT = 500
SEED = 0


def penultimate(chain: Any, images: torch.Tensor) -> torch.Tensor:
    ends = chain.subgraph((chain.input_name,), (chain.feature_name,))
    return as_vectors(advance(ends, (images,))[0]).double()


def quantized(changes: dict[str, Any] | None, model: nn.Module, data: Path) -> Any:
    cell = ablation(changes)
    calibration = clcalib.CalibrationSet.from_tensor(images_of(data, SEED).calibration)
    bits = clcalib.Bits(cell.weights, cell.activations)
    result = clcalib.quantize(
        model, calibration, recipe=cell.make(), bits=bits, seed=SEED, measured_images=0, precision="bfloat16"
    )
    return result.quantized.chain


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with CIFAR-10 (clcalib data cifar10)")
    data = parser.parse_args().data
    torch.set_num_threads(1)
    model = NETWORKS["resnet20"].load()
    images, labels = cifar10(data, "test", torch.arange(COUNT))
    chains = {
        "float": capture(model, images[:2]),
        "plain": quantized(None, model, data),
        "contrastive": quantized({}, model, data),
    }
    features = {name: penultimate(chain, images) for name, chain in chains.items()}
    mean = features["float"].mean(0)
    axes = torch.linalg.svd(features["float"] - mean, full_matrices=False).Vh[:2]
    points = {name: [_pair(point) for point in (own - mean) @ axes.T] for name, own in features.items()}
    print(write_result("study_features", {"points": points, "labels": _words(labels), "seed": SEED, **provenance()}))


def _pair(point: torch.Tensor) -> str:
    return f"{point[0]:.3f} {point[1]:.3f}"  # a text, so that a point is one line of the file


def _words(labels: torch.Tensor) -> str:
    return " ".join(str(label) for label in labels.tolist())


if __name__ == "__main__":
    main()
