"""What the kernel for the weight's gradient of a bfloat16 convolution brings, beside PyTorch's: a minute.

    python benchmarks/weight_gradient.py

One thread, CPU time, least of many rounds in which both take turns; 3 x 3 convolutions, batch 32, as units of known
networks have them.  Errors are those of the largest element, against float64.  ``rate`` is in 10^9 operations a second.
Writes ``benchmarks/results/weight_gradient.json``, or where the processor multiplies tiles (AMX), and the kernel is not
used, ``weight_gradient_with_tiles.json``.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from clcalib.fused import calls
from common import provenance, write_result

BATCH, ROUNDS = 32, 40
# inputs, outputs, height and width
SHAPES = {
    "ResNet-20, first stage": (16, 16, 32),
    "ResNet-20, second stage": (32, 32, 16),
    "ResNet-20, third stage": (64, 64, 8),
    "ResNet-18, first stage": (64, 64, 56),
    "ResNet-18, second stage": (128, 128, 28),
    "ResNet-18, third stage": (256, 256, 14),
}
Compute = Callable[[Tensor, Tensor, Tensor], Tensor]


def plain(x: Tensor, weight: Tensor, gradient: Tensor) -> Tensor:
    """PyTorch's, which on the CPU is oneDNN's."""
    ones = [1, 1]
    found = torch.ops.aten.convolution_backward(
        gradient, x, weight, None, ones, ones, ones, False, [0, 0], 1, [False, True, False]
    )
    return found[1]


def own(x: Tensor, weight: Tensor, gradient: Tensor) -> Tensor:
    """The compiled kernel."""
    return calls.weight_gradient(x, gradient)


def milliseconds(compute: Compute, tensors: tuple[Tensor, Tensor, Tensor], calls_each: int) -> float:
    start = time.process_time()
    for _ in range(calls_each):
        compute(*tensors)
    return 1e3 * (time.process_time() - start) / calls_each


def measured(inputs: int, outputs: int, size: int) -> dict[str, Any]:
    """Both ways on one shape."""
    generator = torch.Generator().manual_seed(0)
    shapes = (BATCH, inputs, size, size), (outputs, inputs, 3, 3), (BATCH, outputs, size, size)
    made = (torch.randn(shape, generator=generator).to(torch.bfloat16) for shape in shapes)
    x, weight, gradient = (tensor.contiguous(memory_format=torch.channels_last) for tensor in made)
    exact = plain(x.double(), weight.double(), gradient.double())
    ways: dict[str, Compute] = {"own": own, "pytorch": plain}
    best = dict.fromkeys(ways, float("inf"))
    for _ in range(ROUNDS):
        for name, compute in ways.items():
            best[name] = min(best[name], milliseconds(compute, (x, weight, gradient), calls_each=3))
    found: dict[str, Any] = {"speedup": round(best["pytorch"] / best["own"], 3)}
    operations = 2 * BATCH * size * size * inputs * outputs * 9
    for name, compute in ways.items():
        error = float((compute(x, weight, gradient).double() - exact).abs().max() / exact.abs().max())
        rate = round(operations / best[name] / 1e6, 1)
        found[name] = {"milliseconds": round(best[name], 3), "rate": rate, "error": float(f"{error:.2g}")}
    return found


def main() -> None:
    torch.set_num_threads(1)
    if not calls.has_weight_gradient():
        sys.exit("skipped: the kernel needs a C++ compiler and a processor with AVX-512 in bfloat16")
    shapes = {name: {"shape": shape, **measured(*shape)} for name, shape in SHAPES.items()}
    for name, row in shapes.items():
        print(
            f"{name:26} {row['own']['milliseconds']:8.2f} {row['pytorch']['milliseconds']:8.2f} {row['speedup']:6.2f}"
        )
    name = "weight_gradient_with_tiles" if calls.has_tiles() else "weight_gradient"
    print(write_result(name, {"shapes": shapes, "batch": BATCH, **provenance(threads=1)}))


if __name__ == "__main__":
    main()
