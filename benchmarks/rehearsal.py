"""What the rehearsal of each target takes, in CPU seconds: ResNet-20, and MobileNetV2 on 224 x 224 pixels.

Weights are random, as what is written, loaded and run does not depend on their values.  The first row of a target holds
what its runtime takes to be imported.

    python benchmarks/rehearsal.py

Writes ``benchmarks/results/rehearsal.json``.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable

import torch
from torch import nn
from torchvision.models import mobilenet_v2

import clcalib
from clcalib.errors import RuntimeMissingWarning
from clcalib.export.rehearsal import Widths, rehearse
from clcalib.quant.targets import TARGETS
from common import provenance, resnet20, write_result

SIZES = {"resnet20": 32, "mobilenet_v2": 224}
BUILDERS: dict[str, Callable[[], nn.Module]] = {"resnet20": resnet20, "mobilenet_v2": mobilenet_v2}
BITS = clcalib.Bits(8, 8)


def measure(name: str) -> list[dict[str, object]]:
    torch.manual_seed(0)
    model = BUILDERS[name]().eval()
    images = torch.randn(3, 3, SIZES[name], SIZES[name])
    widths = Widths(clcalib.capture(model, images[:2]), BITS)
    rows = []
    for target in TARGETS.values():
        start = time.process_time()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeMissingWarning)
            is_tried = rehearse(widths, target, images)
        seconds = round(time.process_time() - start, 2)
        rows.append({"network": name, "target": target.name, "is_tried": is_tried, "cpu_seconds": seconds})
        print(rows[-1], flush=True)
    return rows


if __name__ == "__main__":
    torch.set_num_threads(1)
    found = [row for name in BUILDERS for row in measure(name)]
    print(write_result("rehearsal", {"rows": found, "bits": str(BITS), **provenance()}))
