"""Top-1 accuracy, and agreement with the float network."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from clcalib.errors import ArgumentError, NumericalError

BATCH = 256


@torch.no_grad()
def logits(model: nn.Module, images: Tensor, *, batch_size: int = BATCH, device: str | torch.device = "cpu") -> Tensor:
    """Run the model over images (N, ...) in batches; return (N, classes) on the CPU.

    Raises:
        NumericalError: an output is not finite.
    """
    starts = range(0, len(images), batch_size)
    result = torch.cat([model(images[start : start + batch_size].to(device)).float().cpu() for start in starts])
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
