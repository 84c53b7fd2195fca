"""Contrastive terms on the unit's own output, without the frozen remainder in front: what that one is compared with.

Keys are the float outputs of the same batch, since those of all images would take as much memory as the unit's
targets.  Batches count as in ``outside_batch``.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from clcalib.errors import ArgumentError
from clcalib.objectives.batch import Need, Objective, UnitBatch
from clcalib.objectives.contrastive import LOSSES, Contrastive
from clcalib.objectives.critics import Cosine, Critic
from clcalib.objectives.keys import BATCH_KEYS, KeySet, together


def in_batch(loss: str, critic: Critic, queries: Tensor, keys: Tensor, size: int = BATCH_KEYS) -> Tensor:
    """A loss in ``LOSSES`` on queries and keys (B, d) of one batch; equal keys are no negatives.

    Args:
        loss: a name in ``LOSSES``.
        critic: how a query and a key are compared.
        queries: of the quantized side, (B, d).
        keys: of the float side, (B, d).
        size: a larger batch counts as several of this many images.

    Returns:
        A scalar.
    """
    own = torch.arange(len(keys), device=keys.device)
    identity = identity_of(keys.detach())
    mean = keys.mean(0)
    points = KeySet(keys, F.normalize(keys, dim=1), F.normalize(keys - mean, dim=1), mean, own, identity)
    excluded = (identity[:, None] == identity[None]) | ~together(own, size)
    return LOSSES[loss](critic(queries, points), own, excluded)


def identity_of(keys: Tensor) -> Tensor:  # (B, d) -> (B,) int64
    """Equal numbers for equal keys."""
    if keys.device.type == "cpu":
        equal: Tensor = torch.unique(keys, dim=0, return_inverse=True)[1]
        return equal
    return _first_equal(keys)


def _first_equal(keys: Tensor) -> Tensor:
    """The place of the first equal key; slower than ``unique``, for whose shape the host would wait for the device."""
    return (torch.cdist(keys, keys, p=math.inf) == 0).int().argmax(1)


def flattened(activations: Tensor, channel_axis: int, is_pooled: bool) -> Tensor:
    """Activations (B, ..., C, ...) -> (B, d), or (B, C) with the mean over space; at least float32."""
    wide = activations if activations.dtype == torch.float64 else activations.float()
    return wide.movedim(channel_axis, 1).flatten(2).mean(2) if is_pooled and wide.ndim > 2 else wide.flatten(1)


@dataclasses.dataclass(frozen=True)
class LocalContrastive:
    """Queries a_Q, keys a_F, of the unit itself.

    Args:
        loss: a name in ``LOSSES``.
        critic: how a query and a key are compared.
        is_pooled: compare the means over space; else every element.
        batch: how many images of a step the term sees (``Contrastive.batch``).
    """

    loss: str = "info_nce"
    critic: Critic = Cosine()  # noqa: RUF009 - a frozen value
    is_pooled: bool = False
    batch: int = BATCH_KEYS

    @property
    def needs(self) -> frozenset[Need]:
        return frozenset()

    def __call__(self, batch: UnitBatch) -> Tensor:
        sides = (batch.output, batch.target.detach())
        queries, keys = (flattened(side, batch.channel_axis, self.is_pooled) for side in sides)
        return in_batch(self.loss, self.critic, queries, keys, self.batch)


@dataclasses.dataclass(frozen=True)
class LearnedHead:
    """Queries W pool(a_Q), keys W pool(a_F), with W trained along on the same loss.

    It can lower the loss without bringing a_Q nearer to a_F: W need only find directions that tell the calibration
    images apart in spite of the error, and with as many directions as images it can.  This is here to be measured.

    Args:
        loss: a name in ``LOSSES``.
        critic: how a query and a key are compared.
        width: rows of W.
        rate: Adam's rate for W.
        batch: how many images of a step the term sees (``Contrastive.batch``).
        weight: W (width, C); ``for_unit`` makes it.

    Source: SimCLR (Chen et al., ICML 2020), section 2.1, here one linear layer.
    """

    loss: str = "info_nce"
    critic: Critic = Cosine()  # noqa: RUF009 - a frozen value
    width: int = 32
    rate: float = 1e-3
    batch: int = BATCH_KEYS
    weight: Tensor | None = dataclasses.field(default=None, repr=False, compare=False)

    @property
    def needs(self) -> frozenset[Need]:
        return frozenset()

    def for_unit(self, target: Tensor, channel_axis: int, generator: torch.Generator) -> LearnedHead:
        """A copy with W drawn from N(0, 1 / C)."""
        channels = flattened(target, channel_axis, is_pooled=True)
        weight = torch.randn(self.width, channels.shape[1], generator=generator) / math.sqrt(channels.shape[1])
        return dataclasses.replace(self, weight=nn.Parameter(weight.to(channels)))

    def parameters(self) -> Sequence[Tensor]:
        """W."""
        return () if self.weight is None else (self.weight,)

    def __call__(self, batch: UnitBatch) -> Tensor:
        if self.weight is None:
            raise ArgumentError("weight", "the head of this unit", None, "make one with for_unit")
        sides = (batch.output, batch.target.detach())
        queries, keys = (flattened(side, batch.channel_axis, is_pooled=True) @ self.weight.T for side in sides)
        return in_batch(self.loss, self.critic, queries, keys, self.batch)


CONTRASTIVE = Contrastive | LocalContrastive | LearnedHead


def batch_of(objective: Objective) -> int | None:
    """How many images a step of a contrastive term has, where its keys are those of the batch; else None."""
    if isinstance(objective, LocalContrastive | LearnedHead):
        return objective.batch
    return objective.batch if isinstance(objective, Contrastive) and objective.keys == "batch" else None


def for_batch(objective: Objective, size: int) -> Objective:
    """The objective for steps of ``size`` images; the same one where its keys are not those of the batch."""
    if batch_of(objective) is None or not isinstance(objective, CONTRASTIVE):
        return objective
    return dataclasses.replace(objective, batch=size)
