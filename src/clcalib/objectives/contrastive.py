"""The contrastive losses of CL-Calib, on scores of quantized queries against static float keys.

Shang, Liu, Kompella, Yan: "Enhancing Post-training Quantization Calibration through Contrastive Learning", CVPR 2024.
Notation: s_ij is the score of query i against key j, p(i) the key of the same image, N the number of negatives of a
query, M the number of keys.  A True in ``excluded`` takes a pair out of the negatives; the positive always stays;
None takes none out.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from clcalib.errors import ArgumentError
from clcalib.fused import nce
from clcalib.objectives.batch import Need, UnitBatch, missing_need
from clcalib.objectives.critics import Cosine, Critic
from clcalib.objectives.keys import BATCH_KEYS, FALSE_NEGATIVES, KeySet, as_vectors, outside_batch, outside_subset


def info_nce(scores: Tensor, positive: Tensor, excluded: Tensor | None = None) -> Tensor:
    """mean_i -log( e^{s_ip(i)} / sum_j e^{s_ij} ), the sum over the positive and the negatives that are left.

    Args:
        scores: (B, M).
        positive: (B,) int64, index of each query's own key.
        excluded: (B, M) bool, or None.

    Returns:
        A scalar; with no false negatives masked, log(1 + N) - info_nce bounds the mutual information from below.

    Source: van den Oord et al. 2018, eq. 4.
    """
    if excluded is not None:
        scores = scores.masked_fill(_without(excluded, positive), -math.inf)
    return F.cross_entropy(scores, positive)


def sigmoid_nce(scores: Tensor, positive: Tensor, excluded: Tensor | None = None) -> Tensor:
    """mean_i [ -log h_ip(i) - mean_{negatives j} log(1 - h_ij) ] with h = sigmoid(s).

    Shapes as in ``info_nce``.  The negatives are averaged, so this is a training loss and no bound.
    """
    chosen = scores.gather(1, positive[:, None]).squeeze(1)
    negative = _negatives(scores, excluded, positive)
    terms = F.softplus(scores).masked_fill(~negative, 0.0)
    return (F.softplus(-chosen) + terms.sum(1) / negative.sum(1).clamp(min=1)).mean()


def crd_nce(scores: Tensor, positive: Tensor, excluded: Tensor | None = None, log_constant: float = 0.0) -> Tensor:
    """mean_i [ -log h_ip(i) - sum_{negatives j} log(1 - h_ij) ] with h = e^{s-c} / (e^{s-c} + N/M).

    Shapes as in ``info_nce``.  ``log_constant`` is c: zero is the plain form; with the logarithm of the mean of e^s, a
    pair of average score has h = 1 / (1 + N/M), as in contrastive distillation.  The negatives are summed, so with no
    false negatives masked log N - crd_nce bounds the mutual information from below.

    Source: Tian et al. 2020, eqs. 18 and 19.
    """
    negative = _negatives(scores, excluded, positive)
    ratio = negative.sum(1, keepdim=True).clamp(min=1).to(scores.dtype) / scores.shape[1]
    logits = scores - log_constant - ratio.log()  # h = sigmoid(logits)
    chosen = logits.gather(1, positive[:, None]).squeeze(1)
    return (F.softplus(-chosen) + F.softplus(logits).masked_fill(~negative, 0.0).sum(1)).mean()


def normalised_crd_nce(scores: Tensor, positive: Tensor, excluded: Tensor | None = None) -> Tensor:
    """``crd_nce`` with c = log of the mean of e^s over the pairs, held constant: the critic starts out calibrated.

    Source: the constant Z of Tian et al. 2020, here taken anew from each batch.
    """
    with torch.no_grad():
        constant = torch.logsumexp(scores.flatten(), 0) - math.log(scores.numel())
    return crd_nce(scores - constant, positive, excluded)


LOSSES = {
    "info_nce": info_nce,
    "sigmoid_nce": sigmoid_nce,
    "crd_nce": crd_nce,
    "normalised_crd_nce": normalised_crd_nce,
}


@dataclasses.dataclass(frozen=True)
class Contrastive:
    """The contrastive term of one unit: queries g(a_Q), keys g(a_F).

    Args:
        loss: a name in ``LOSSES``.
        read: ``"features"`` reads g at the penultimate feature, ``"logits"`` at the network's output.
        critic: how a query and a key are compared.
        false_negatives: a name in ``FALSE_NEGATIVES``; copies of the query's image are always masked.
        keys: how many keys a query is compared with, its own among them: a fixed subset of this size, ``"batch"`` for
            those of its batch, None for all calibration images.
        batch: how many images of a step the term sees, for ``keys="batch"``; larger batches, such as those that
            relative weights are measured on, count as several of this size.
    """

    loss: str = "info_nce"
    read: str = "features"
    critic: Critic = Cosine()  # noqa: RUF009 - a frozen value
    false_negatives: str = "keep"
    keys: int | Literal["batch"] | None = None
    batch: int = BATCH_KEYS

    def __post_init__(self) -> None:
        for name, value, table in (
            ("loss", self.loss, LOSSES),
            ("read", self.read, ("features", "logits")),
            ("false_negatives", self.false_negatives, FALSE_NEGATIVES),
        ):
            if value not in table:
                raise ArgumentError(name, f"one of {', '.join(table)}", repr(value))
        is_count = isinstance(self.keys, int) and not isinstance(self.keys, bool) and self.keys >= 2
        if self.keys not in (None, "batch") and not is_count:
            raise ArgumentError("keys", 'at least 2, "batch", or None for all', repr(self.keys))

    @property
    def need(self) -> Need:
        return Need(self.read)

    @property
    def needs(self) -> frozenset[Need]:
        return frozenset({self.need})

    def __call__(self, batch: UnitBatch) -> Tensor:
        if self.need not in batch.reads or self.need not in batch.keys:
            raise missing_need(self, self.need)
        keys, positive = batch.keys[self.need], batch.sample_index
        queries, excluded = as_vectors(batch.reads[self.need]), self.excluded(keys, positive)
        is_common = excluded is None and self.loss == "info_nce"
        if is_common and isinstance(self.critic, Cosine) and nce.can_take(queries, keys.directions, positive):
            return nce.cosine_info_nce(queries, keys.columns, positive, keys.least, self.critic.temperature)
        return LOSSES[self.loss](self.critic(queries, keys), positive, excluded)

    def excluded(self, keys: KeySet, sample_index: Tensor) -> Tensor | None:  # -> (B, M) bool
        """The pairs that are no negatives: false ones, and those with keys that are left out; None for none."""
        if self.keys is None and self.false_negatives == "keep" and not keys.has_copies:
            return None
        excluded = FALSE_NEGATIVES[self.false_negatives](keys, sample_index)
        if self.keys is None:
            return excluded
        if self.keys == "batch":
            return excluded | outside_batch(len(keys), sample_index, self.batch)
        return excluded | outside_subset(len(keys), self.keys, sample_index)


def _without(excluded: Tensor, positive: Tensor) -> Tensor:  # excluded pairs, the positives taken out of them
    return excluded.scatter(1, positive[:, None], False)


def _negatives(scores: Tensor, excluded: Tensor | None, positive: Tensor) -> Tensor:  # (B, M) bool
    if excluded is None:
        excluded = torch.zeros_like(scores, dtype=torch.bool)
    return ~excluded.scatter(1, positive[:, None], True)
