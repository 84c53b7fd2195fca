"""How many bytes the stored inputs and targets take for each calibration image, with float32 and with bfloat16 caches.

    python benchmarks/cache_bytes.py

Counted where blocks are given out, at the moment when most are alive; so it is exact, of no machine, and quick.
Writes ``benchmarks/results/cache_bytes.json``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from unittest import mock

import torch
from torch import nn

import clcalib
from clcalib.calibrate.space import StoreSpace
from common import mobilenetv2, provenance, resnet20, write_result

IMAGES = 32
BUILDS: dict[str, Callable[[], nn.Module]] = {"resnet20": resnet20, "mobilenetv2": mobilenetv2}


def bytes_of_an_image(build: Callable[[], nn.Module], bits: clcalib.Bits, cache_precision: str) -> int:
    """Of a walk with nearest rounding, which stores what any other recipe stores."""
    seen, allocate = [0], StoreSpace.allocate

    def watched(space: StoreSpace, *arguments: Any, **options: Any) -> object:
        block = allocate(space, *arguments, **options)
        seen.append(space.most_used)
        return block

    torch.manual_seed(0)
    images = torch.randn(IMAGES, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with mock.patch.object(StoreSpace, "allocate", watched):
        clcalib.quantize(
            build().eval(),
            clcalib.CalibrationSet.from_tensor(images),
            recipe=clcalib.recipes.nearest(),
            bits=bits,
            cache_precision=cache_precision,
            measured_images=0,
            precision="float32",
        )
    return max(seen) // IMAGES


def main() -> None:
    torch.set_num_threads(1)
    rows = []
    for name, build in BUILDS.items():
        for widths in ((2, 2), (4, 8)):
            sizes = {kind: bytes_of_an_image(build, clcalib.Bits(*widths), kind) for kind in ("float32", "bfloat16")}
            rows.append({"network": name, "weights": widths[0], "activations": widths[1], **sizes})
            print(rows[-1], flush=True)
    print(write_result("cache_bytes", {"rows": rows, "images": IMAGES, **provenance(seed=0)}))


if __name__ == "__main__":
    main()
