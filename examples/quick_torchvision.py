r"""A torchvision network and a folder of images: what you have if you come from ImageNet.

    python examples/quick_torchvision.py
    python examples/quick_torchvision.py --network resnet18 --checkpoint FILE --images FOLDER \
        --size 224 --count 512 --steps 200

Without arguments the images are some of the embedded ones, written as PNG files into class folders, and the **weights
are random**: it shows the way and no accuracy, only how well the quantized network agrees with the float one.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import torch
from PIL import Image
from torchvision.models import get_model

import clcalib
from clcalib.data.sheet import read_sheet
from clcalib.data.sources import load_calibration, load_evaluation
from clcalib.data.transform import Transform
from clcalib.reading.state_dict import read_tensors
from demo_images import CALIBRATION


def write_folder(folder: Path, count: int) -> None:
    """Write embedded images as ``folder/CLASS/NUMBER.png``."""
    tiles, index = read_sheet(CALIBRATION)
    for number, (tile, label) in enumerate(zip(tiles[:count], index.labels or (), strict=False)):
        path = folder / index.classes[label] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(tile.permute(1, 2, 0).numpy()).save(path)


def run(images: Path, given: argparse.Namespace) -> None:
    torch.manual_seed(0)
    model = get_model(given.network, weights=None).eval()
    if given.checkpoint is not None:
        model.load_state_dict(read_tensors(given.checkpoint))
    transform = Transform(resize=given.size * 8 // 7, crop=given.size)
    calibration = load_calibration(images, transform=transform, count=given.count)
    evaluation = load_evaluation(images, transform=transform, count=given.count, seed=1)
    result = clcalib.quantize(
        model,
        calibration,
        recipe=clcalib.recipes.fast(steps=given.steps),
        bits=clcalib.Bits(weights=4, activations=8),
        evaluation=evaluation,
        measured_images=0,
    )
    record = result.record
    improved = sum(unit.kept == "learned" for unit in record.units)
    print(
        f"{given.network} with {'random' if given.checkpoint is None else given.checkpoint.name} weights, W4A8,",
        end=" ",
    )
    print(f"{len(calibration)} images of {images.name}, {given.steps} steps for each of {len(record.units)} units")
    print(f"units better than with nearest rounding: {improved}")
    if given.checkpoint is None:
        print("the weights are random, so there is no accuracy to speak of; same class as the float network:", end=" ")
    else:
        print(f"top-1: float {record.float_top1:.1%}, quantized {record.quantized_top1:.1%}; agreement:", end=" ")
    print(f"nearest {record.nearest_agreement:.1%}, fast {record.agreement:.1%}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path, help="a folder of images, or of class folders")
    parser.add_argument("--checkpoint", type=Path, help="a state dict of it; random weights without")
    parser.add_argument("--network", default="squeezenet1_1", help="a name of torchvision.models")
    parser.add_argument("--size", type=int, default=64, help="pixels of a side")
    parser.add_argument("--count", type=int, default=32, help="images")
    parser.add_argument("--steps", type=int, default=4, help="for each unit")
    given = parser.parse_args()
    if given.images is not None:
        run(given.images, given)
        return
    with tempfile.TemporaryDirectory() as folder:
        write_folder(Path(folder, "embedded"), given.count)
        run(Path(folder, "embedded"), given)


if __name__ == "__main__":
    main()
