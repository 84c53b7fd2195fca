"""What a step cannot go below: the operations of a unit's convolutions, and how fast this machine multiplies.

A step computes each layer's output and the gradient of its weight; the gradient of a layer's input only where something
that is trained lies before it in the unit.  Two operations count for a multiply-add.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from clcalib.calibrate.observer import SilentObserver
from reference_step import Activation, Layer
from step_clock import Clock

MATRIX, REPEATS = 2048, 5
TYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
SHAPES = ((16, 32), (32, 16), (64, 8), (256, 16))  # channels and side of the convolutions that are timed


@torch.no_grad()
def unit_operations(names: Sequence[str], network: nn.Sequential, images: torch.Tensor) -> dict[str, float]:
    """Operations of the convolutions of one step on these images; a unit without convolutions is left out."""
    operations: dict[str, float] = {}
    x = images
    for name, unit in zip(names, network, strict=True):
        seen: list[float] = []
        is_behind_trained = False

        def count(module: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
            nonlocal is_behind_trained
            if isinstance(module, Layer) and module.weight.dim() == 4:
                forward = 2.0 * output.numel() * math.prod(module.weight.shape[1:])
                seen.append(forward * (3 if is_behind_trained else 2))  # noqa: B023 - used within this turn
            is_behind_trained = True

        parts = [module for module in unit.modules() if isinstance(module, (Layer, Activation))]
        hooks = [module.register_forward_hook(count) for module in parts]
        x = unit(x)
        for hook in hooks:
            hook.remove()
        if seen:
            operations[name] = sum(seen)
    return operations


def rates(clock: Clock) -> dict[str, dict[str, float]]:
    """10^9 operations a second: of a square matrix product, and the best of several 3 x 3 convolutions."""
    found: dict[str, dict[str, float]] = {"matrix": {}, "convolution": {}}
    for name, dtype in TYPES.items():
        a, b = torch.randn(2, MATRIX, MATRIX, device=clock.device).to(dtype)
        found["matrix"][name] = round(_rate(clock, 2.0 * MATRIX**3, lambda a=a, b=b: a @ b), 1)
        found["convolution"][name] = round(max(_convolution_rate(clock, dtype, *shape) for shape in SHAPES), 1)
    return found


def _convolution_rate(clock: Clock, dtype: torch.dtype, channels: int, side: int) -> float:
    best = 0.0
    for order in (torch.contiguous_format, torch.channels_last):
        x = torch.randn(32, channels, side, side, device=clock.device).to(dtype, memory_format=order)
        weight = torch.randn(channels, channels, 3, 3, device=clock.device).to(dtype, memory_format=order)
        operations = 2.0 * x.numel() * channels * 9
        best = max(best, _rate(clock, operations, lambda x=x, weight=weight: F.conv2d(x, weight, padding=1)))
    return best


@torch.no_grad()
def _rate(clock: Clock, operations: float, work: Callable[[], Any]) -> float:
    calls = max(1, round((1e12 if clock.is_cuda else 2e9) / operations))  # long enough for the clock
    marks = []
    for _ in range(REPEATS + 1):  # the first warms up
        first = clock.mark()
        for _ in range(calls):
            work()
        marks.append((first, clock.mark()))
    best = min(clock.milliseconds(*pair) for pair in marks[1:])
    return calls * operations / best / 1e6


class ConvolutionTypes(TorchDispatchMode, SilentObserver):
    """An observer that counts in which number type convolutions run while units are optimised."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if "convolution" in str(function) or "conv2d" in str(function):
            tensor = next(argument for argument in args if isinstance(argument, torch.Tensor))
            self.counts[{value: key for key, value in TYPES.items()}.get(tensor.dtype, str(tensor.dtype))] += 1
        return function(*args, **(kwargs or {}))

    def unit_started(self, index: int, count: int, name: str, kind: str, steps: int) -> None:
        self.__enter__()

    def unit_finished(self, index: int, name: str, error_before: float, error_after: float) -> None:
        self.__exit__(None, None, None)
