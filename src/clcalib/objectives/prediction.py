"""How far the network's prediction moves when one unit is quantized (PD-Quant)."""

from __future__ import annotations

import dataclasses

from torch import Tensor
from torch.nn import functional as F

from clcalib.errors import ArgumentError
from clcalib.objectives.batch import Need, UnitBatch, missing_need
from clcalib.objectives.keys import as_vectors


def prediction_difference(logits: Tensor, float_logits: Tensor, temperature: float) -> Tensor:
    """mean_i KL( softmax(z_F,i / T) || softmax(z_Q,i / T) ), in nats.

    Args:
        logits: z_Q, behind the quantized unit and the frozen float rest, (B, classes).
        float_logits: z_F, of the float network, same shape; a constant.
        temperature: T.

    Returns:
        A scalar.

    Source: PD-Quant (Liu et al., CVPR 2023), eq. 6.
    """
    ours, theirs = ((z / temperature).log_softmax(1) for z in (logits, float_logits.detach()))
    return F.kl_div(ours, theirs, reduction="batchmean", log_target=True)


@dataclasses.dataclass(frozen=True)
class Prediction:
    """``prediction_difference`` of the unit as its ``Term`` looks at it; PD-Quant's is ``on="quantized"``.

    Args:
        temperature: 4 for ResNet and RegNet, 1 for MobileNetV2 and MNASNet, after PD-Quant.
    """

    temperature: float = 4.0

    def __post_init__(self) -> None:
        if not 0 < self.temperature < float("inf"):
            raise ArgumentError("temperature", "a positive number", self.temperature, "4 for residual networks")

    @property
    def needs(self) -> frozenset[Need]:
        return frozenset({Need.LOGITS})

    def __call__(self, batch: UnitBatch) -> Tensor:
        if Need.LOGITS not in batch.reads or Need.LOGITS not in batch.keys:
            raise missing_need(self, Need.LOGITS)
        float_logits = batch.keys[Need.LOGITS].values[batch.sample_index]
        return prediction_difference(as_vectors(batch.reads[Need.LOGITS]), float_logits, self.temperature)
