"""How far the penultimate feature moves when one unit is quantized."""

from __future__ import annotations

import dataclasses

from torch import Tensor

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
    """``feature_error`` at the penultimate feature, maps averaged over space; behind the last unit at the logits."""

    @property
    def needs(self) -> frozenset[Need]:
        return frozenset({Need.FEATURES})

    def __call__(self, batch: UnitBatch) -> Tensor:
        if Need.FEATURES not in batch.reads or Need.FEATURES not in batch.keys:
            raise missing_need(self, Need.FEATURES)
        float_features = batch.keys[Need.FEATURES].values[batch.sample_index]
        return feature_error(as_vectors(batch.reads[Need.FEATURES]), float_features)
