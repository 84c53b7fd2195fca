"""In which type convolutions compute while a unit is optimised, and in which the float network's values are stored."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable

import torch
from torch.nn import functional as F

from clcalib.errors import ArgumentError

PRECISIONS = {"auto": None, "float32": torch.float32, "bfloat16": torch.bfloat16}
CACHE_PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16}
LEAST_GAIN = 1.2  # below this, the casts eat the gain
ROUNDS = 5


def convolution_dtype(precision: str, device: torch.device) -> torch.dtype:
    """The type of a name in ``PRECISIONS``; "auto" is bfloat16 where a convolution is at least 1.2 times as fast in it.

    Raises:
        ArgumentError: the name is unknown.
    """
    if precision not in PRECISIONS:
        raise ArgumentError("precision", f"one of {', '.join(PRECISIONS)}", repr(precision))
    chosen = PRECISIONS[precision]
    if chosen is not None:
        return chosen
    return torch.bfloat16 if gain_of_bfloat16(device) >= LEAST_GAIN else torch.float32


def cache_dtype(name: str) -> torch.dtype:
    """The type of a name in ``CACHE_PRECISIONS``.

    Raises:
        ArgumentError: the name is unknown.
    """
    if name not in CACHE_PRECISIONS:
        raise ArgumentError("cache_precision", f"one of {', '.join(CACHE_PRECISIONS)}", repr(name))
    return CACHE_PRECISIONS[name]


@functools.cache
def gain_of_bfloat16(device: torch.device) -> float:
    """How many times as fast a small convolution is in bfloat16, forward and backward; measured once per process."""
    if device.type == "cuda":
        return 2.0 if torch.cuda.is_bf16_supported(including_emulation=False) else 0.0
    if device.type != "cpu":
        return 0.0
    runs = {dtype: _convolution(dtype) for dtype in (torch.float32, torch.bfloat16)}
    seconds = dict.fromkeys(runs, float("inf"))
    for _ in range(ROUNDS):  # in turn, so that a busy moment hits both
        for dtype, run in runs.items():
            start = time.perf_counter()
            run()
            seconds[dtype] = min(seconds[dtype], time.perf_counter() - start)
    return seconds[torch.float32] / seconds[torch.bfloat16]


def _convolution(dtype: torch.dtype) -> Callable[[], object]:
    generator = torch.Generator().manual_seed(0)
    x, weight = (torch.randn(shape, generator=generator) for shape in ((16, 32, 16, 16), (32, 32, 3, 3)))
    x, weight = (t.to(dtype).contiguous(memory_format=torch.channels_last).requires_grad_() for t in (x, weight))

    @torch.enable_grad()
    def run() -> object:
        output = F.conv2d(x, weight, padding=1)
        return torch.autograd.grad(output, (x, weight), output.detach())

    run()
    return run
