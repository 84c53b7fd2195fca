"""Top-1 accuracy, and agreement with the float network."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from clcalib.errors import ArgumentError, NumericalError
from clcalib.quant.functional import compiled_passes

BATCH = 256


@torch.no_grad()
@compiled_passes()
def logits(
    model: Callable[[Tensor], Any], images: Tensor, *, batch_size: int = BATCH, device: str | torch.device = "cpu"
) -> Tensor:
    """Run the model (or any function of a batch) over images (N, ...) in batches; return (N, classes) on the CPU.

    Raises:
        ArgumentError: the model returns something else than one tensor (N, classes).
        NumericalError: an output is not finite.
    """
    parts = []
    for start in range(0, len(images), batch_size):
        output = model(images[start : start + batch_size].to(device))
        if not isinstance(output, Tensor) or output.ndim != 2:
            got = f"an output of {output.ndim} dimensions" if isinstance(output, Tensor) else type(output).__name__
            expected = "a network with output (N, classes), since predicted classes are compared"
            raise ArgumentError("evaluation", expected, got, "leave it out; clcalib.evaluate.detection compares boxes")
        parts.append(output.float().cpu())
    result = torch.cat(parts)
    if not bool(torch.isfinite(result).all()):
        raise NumericalError("model: its output is not finite on the evaluation images")
    return result


def top1(outputs: Tensor, labels: Tensor) -> float:
    """Share of images whose largest output (N, classes) is at the label (N,).

    Example:
        >>> top1(torch.tensor([[0.1, 0.9], [0.8, 0.2]]), torch.tensor([1, 1]))
        0.5
    """
    if len(outputs) != len(labels):
        raise ArgumentError("labels", f"one label for each of {len(outputs)} images", len(labels))
    return float((outputs.argmax(1) == labels).double().mean())


def agreement(outputs: Tensor, float_outputs: Tensor) -> float:
    """Share of images for which both networks (N, classes) name the same class."""
    return float((outputs.argmax(1) == float_outputs.argmax(1)).double().mean())
