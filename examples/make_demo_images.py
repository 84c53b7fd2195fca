"""Make the images of the demonstration from CIFAR-10: tile sheets that one can look at.

    python examples/make_demo_images.py --data DATA --out examples/demo

DATA is what ``clcalib data cifar10`` brings.  Written are 1,024 training images for calibration and 2,000 test images,
each class as often as the others, chosen by seed 0; every file is read back and compared pixel by pixel.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from clcalib.data.cifar10 import CLASSES, read_cifar10
from clcalib.data.selection import choose_balanced
from clcalib.data.sheet import SheetIndex, read_sheet, write_sheet

SEED = 0


def make(data: Path, split: str, count: int, columns: int, path: Path, sheets: tuple[str, ...]) -> list[Path]:
    """Write ``count`` images of one split as the tile sheet ``path``; check that nothing was lost."""
    images, labels = read_cifar10(data, "train" if split == "train" else "test")
    indices = choose_balanced(labels.tolist(), count, SEED)
    tiles = images[list(indices)]
    index = SheetIndex(
        tile=(32, 32),
        columns=columns,
        count=count,
        labels=tuple(labels[list(indices)].tolist()),
        classes=CLASSES,
        source=f"CIFAR-10 {split} images (Krizhevsky, 2009)",
        indices=indices,
        sheets=sheets,
    )
    written = write_sheet(path, tiles, index)
    read_tiles, read_index = read_sheet(path)
    if not torch.equal(read_tiles, tiles) or read_index != index:
        raise RuntimeError(f"{path} does not give back what was written")
    return written


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with the CIFAR-10 sheets")
    parser.add_argument("--out", type=Path, required=True, help="folder for the tile sheets")
    arguments = parser.parse_args()
    out: Path = arguments.out
    out.mkdir(parents=True, exist_ok=True)
    files = make(arguments.data, "train", 1024, 32, out / "calibration.json", ())
    files += make(arguments.data, "test", 2000, 40, out / "test.json", ("test-0.png", "test-1.png"))
    for file in files:
        print(f"{file}: {file.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
