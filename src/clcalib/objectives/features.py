"""How far the penultimate feature moves when one unit is quantized."""

from __future__ import annotations

import dataclasses
from typing import Literal

from torch import Tensor

from clcalib.errors import ArgumentError
from clcalib.objectives.batch import Need, UnitBatch, missing_need
from clcalib.objectives.keys import as_vectors


def feature_error(features: Tensor, float_features: Tensor) -> Tensor:
    """mean over the batch of ||z_Q - z_F||^2.

    Args:
        features: the quantized unit's output behind the frozen float remainder, (B, d).
        float_features: the float network's own, (B, d); a constant.

    Returns:
        A scalar.

    Example:
        >>> import torch
        >>> feature_error(torch.tensor([[1.0, 2.0]]), torch.zeros(1, 2)).item()
        5.0
    """
    return (features - float_features.detach()).square().sum(1).mean()


@dataclasses.dataclass(frozen=True)
class FeatureReconstruction:
    """``feature_error`` where the frozen float remainder is read; maps are averaged over space.

    Args:
        read: ``"features"`` (penultimate), or ``"logits"``, the network's output, for one that ends in no classifier;
            behind the last unit the latter in any case.
    """

    read: Literal["features", "logits"] = "features"

    def __post_init__(self) -> None:
        if self.read not in ("features", "logits"):
            raise ArgumentError("read", "'features' or 'logits'", repr(self.read))

    @property
    def needs(self) -> frozenset[Need]:
        return frozenset({Need(self.read)})

    def __call__(self, batch: UnitBatch) -> Tensor:
        need = Need(self.read)
        if need not in batch.reads or need not in batch.keys:
            raise missing_need(self, need)
        float_features = batch.keys[need].values[batch.sample_index]
        return feature_error(as_vectors(batch.reads[need]), float_features)
