"""The result beside nearest rounding and the float network, on the same images."""

from __future__ import annotations

import dataclasses
import math

import torch
from torch import Tensor

from clcalib.evaluate.accuracy import agreement, top1

CERTAINTY = 2.0  # standard deviations of the difference that count as worse


@dataclasses.dataclass(frozen=True)
class Comparison:
    """How three networks do on the same images; accuracies are None without labels.

    Attributes:
        float_top1, nearest_top1, quantized_top1: top-1 accuracy.
        nearest_agreement, agreement: share of the images on which nearest rounding and the result name the class that
            the float network names.
        lost, won: images that nearest rounding has right and the result wrong, and the other way round; without labels,
            right is what the float network names.
    """

    float_top1: float | None
    nearest_top1: float | None
    quantized_top1: float | None
    nearest_agreement: float
    agreement: float
    lost: int
    won: int

    @property
    def is_worse(self) -> bool:
        """Whether the result is worse than nearest rounding by more than chance: lost - won > 2 sqrt(lost + won).

        Source: McNemar 1947; only images on which both differ count.
        """
        return self.lost - self.won > CERTAINTY * math.sqrt(self.lost + self.won)


@dataclasses.dataclass(frozen=True)
class Predictions:
    """The classes that three networks name for the same images, each (N,) int64 on the CPU.

    Attributes:
        floating, nearest, quantized: of the float network, of nearest rounding (None where it is not at hand) and of
            the result.
        float_confidence, quantized_confidence: the share (N,) that their softmax gives to that class.
    """

    floating: Tensor
    nearest: Tensor | None
    quantized: Tensor
    float_confidence: Tensor
    quantized_confidence: Tensor

    @classmethod
    def of(cls, floats: Tensor, nearest: Tensor | None, own: Tensor) -> Predictions:
        """From the outputs (N, classes) of the networks."""
        shares = [torch.softmax(outputs, 1).amax(1) for outputs in (floats, own)]
        named = None if nearest is None else nearest.argmax(1)
        return cls(floats.argmax(1), named, own.argmax(1), *shares)


def compare(floats: Tensor, nearest: Tensor, own: Tensor, labels: Tensor | None) -> Comparison:
    """Compare the outputs (N, classes) of the float network, of nearest rounding and of the result."""
    truth = floats.argmax(1) if labels is None else labels
    is_nearest_right, is_own_right = nearest.argmax(1) == truth, own.argmax(1) == truth
    return Comparison(
        float_top1=None if labels is None else top1(floats, labels),
        nearest_top1=None if labels is None else top1(nearest, labels),
        quantized_top1=None if labels is None else top1(own, labels),
        nearest_agreement=agreement(nearest, floats),
        agreement=agreement(own, floats),
        lost=int((is_nearest_right & ~is_own_right).sum()),
        won=int((is_own_right & ~is_nearest_right).sum()),
    )
