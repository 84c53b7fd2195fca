"""Top-1 of a saved run on a folder of any size, read batch by batch: ``clcalib evaluate`` holds all images in memory.

    python benchmarks/imagenet/validate.py runs/w4a4 --images imagenet/val --device cuda

The float network, its weights and the transform are those of the run's ``config.json``; classes are the subfolders in
alphabetical order, as torchvision's ``ImageFolder`` has them, or those of a ``labels.csv``.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

import clcalib
from clcalib.config import RunConfig
from clcalib.config_sources import CONFIG_FILE
from clcalib.data.decode import read_image
from clcalib.data.folder import list_images
from clcalib.evaluate.accuracy import logits
from clcalib.model_source import load_model


def batches(folder: Path, config: RunConfig, size: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Images (N, C, H, W) and labels (N,), as many as ``size`` at once."""
    listing = list_images(folder)
    if listing.labels is None:
        sys.exit(f"{folder} has no labels: subfolders or labels.csv are missing")
    read = partial(read_image, transform=config.data.transform())
    with ThreadPoolExecutor() as pool:  # decoding does not hold the interpreter's lock
        for start in range(0, len(listing.files), size):
            images = list(pool.map(read, listing.files[start : start + size]))
            yield torch.stack(images), torch.tensor(listing.labels[start : start + size])


def validate(run: Path, images: Path, device: str, batch: int) -> dict[str, float]:
    """Top-1 of both networks and their agreement, in %."""
    config = RunConfig.model_validate_json((run / CONFIG_FILE).read_text())
    float_model = load_model(config.model)
    models = [model.to(device) for model in (float_model, clcalib.load(run, float_model))]
    counts = torch.zeros(3, dtype=torch.int64)
    total = 0
    for pixels, labels in batches(images, config, batch):
        first, second = (logits(model, pixels, batch_size=batch, device=device).argmax(1) for model in models)
        counts += torch.stack([(first == labels).sum(), (second == labels).sum(), (first == second).sum()])
        total += len(labels)
    names = ("float_top1", "quantized_top1", "agreement")
    return {"images": total, **{name: 100 * int(count) / total for name, count in zip(names, counts, strict=True)}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="the output folder of clcalib quantize")
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--batch", type=int, default=64)
    arguments = parser.parse_args()
    print(json.dumps(validate(arguments.run, arguments.images, arguments.device, arguments.batch), indent=1))


if __name__ == "__main__":
    main()
