"""The static key set: the float network's own features of all calibration images, computed once per run.

Since the float chain is consistent, g_k(a_F) is the same vector for every unit k, so one set of keys serves them all
(docs/method.md, section 2).
"""

from __future__ import annotations

import dataclasses
import functools

import torch
from torch import Tensor
from torch.nn import functional as F

LEAST_NORM = 1e-6  # of the keys' mean length; shorter vectors are not made longer than this share of a unit vector
BATCH_KEYS = 32  # a batch of the host methods, where no other size is said
_SUBSET_SEED = 0


@dataclasses.dataclass(frozen=True)
class KeySet:
    """Float features of the calibration images, with what tells false negatives apart.

    Attributes:
        values: the features themselves, (M, d).
        directions: the features, each divided by its length, (M, d).
        centred_directions: the same after the mean was taken off, (M, d).
        mean: the mean of the features, (d,).
        predictions: the float network's predicted class, (M,) int64.
        identity: equal numbers for images that are equal byte for byte, (M,) int64.
        has_copies: whether any two of the images may be equal.
    """

    values: Tensor
    directions: Tensor
    centred_directions: Tensor
    mean: Tensor
    predictions: Tensor
    identity: Tensor

    has_copies: bool = True

    @functools.cached_property
    def least_norm(self) -> Tensor:
        """The length below which a query counts as zero, ()."""
        return least_norm(self.values)

    @functools.cached_property
    def least(self) -> float:
        """``least_norm`` as a number."""
        return float(self.least_norm)

    @functools.cached_property
    def columns(self) -> Tensor:
        """``directions`` with the keys in columns, (d, M), contiguous."""
        return self.directions.T.contiguous()

    @functools.cached_property
    def least_centred_norm(self) -> Tensor:
        """The same for queries less the mean, ()."""
        return least_norm(self.values - self.mean)

    def __len__(self) -> int:
        return len(self.directions)


def as_vectors(features: Tensor) -> Tensor:
    """Features (B, C, *spatial) -> (B, C): the mean over space, where the network has not taken it yet.

    They are at least float32: a sum of squares of float16 is soon infinite.
    """
    features = features if features.dtype == torch.float64 else features.float()
    return features.flatten(2).mean(2) if features.ndim > 2 else features.flatten(1)


def least_norm(vectors: Tensor) -> Tensor:
    """``LEAST_NORM`` of the mean length of vectors (M, d), (); of zeros, the smallest number that is not."""
    length: Tensor = torch.linalg.vector_norm(vectors.detach(), dim=1).mean()
    return length.mul(LEAST_NORM).clamp(min=torch.finfo(torch.float32).tiny)


def unit_vectors(vectors: Tensor, least: Tensor) -> Tensor:
    """x / max(|x|, least), for vectors (B, d).

    A vector that is zero, or next to it, has no direction; without the bound its gradient would be that of all others
    times a number without limit.
    """
    return vectors / torch.maximum(torch.linalg.vector_norm(vectors, dim=1, keepdim=True), least)


def build_keys(raw: Tensor, predictions: Tensor, identity: Tensor) -> KeySet:
    """Freeze features (M, d) or (M, d, *spatial) as keys."""
    raw = as_vectors(raw.detach())
    distinct = len(torch.unique(identity))
    mean = raw.mean(0)
    directions = F.normalize(raw, dim=1), F.normalize(raw - mean, dim=1)
    return KeySet(raw, *directions, mean, predictions, identity, has_copies=distinct < len(raw))


def excluded_keep(keys: KeySet, sample_index: Tensor) -> Tensor:  # -> (B, M) bool
    """Mask copies of the query's own image, nothing else: a duplicate is not a negative."""
    return keys.identity[sample_index][:, None] == keys.identity[None]


def excluded_same_prediction(keys: KeySet, sample_index: Tensor) -> Tensor:  # -> (B, M) bool
    """Mask images that the float network puts into the query's class, and copies of the query."""
    same = keys.predictions[sample_index][:, None] == keys.predictions[None]
    return same | excluded_keep(keys, sample_index)


def excluded_similar(keys: KeySet, sample_index: Tensor, threshold: float = 0.9) -> Tensor:  # -> (B, M) bool
    """Mask keys whose cosine with the query's own key is above the threshold, and copies of the query."""
    cosine = keys.directions[sample_index] @ keys.directions.T
    return (cosine > threshold) | excluded_keep(keys, sample_index)


FALSE_NEGATIVES = {
    "keep": excluded_keep,
    "same_prediction": excluded_same_prediction,
    "similar": excluded_similar,
}


def outside_subset(count: int, candidates: int, sample_index: Tensor) -> Tensor:  # -> (B, count) bool
    """Mask all keys but the query's own and ``candidates - 1`` others, the same ones at every step.

    The others are the first of a fixed order; a query that is among them takes the one that follows instead.
    """
    rank = _ranks(count, sample_index.device)
    is_among = rank[sample_index] < candidates - 1
    allowed = (rank < candidates - 1)[None] | (is_among[:, None] & (rank == candidates - 1)[None])
    return ~allowed.scatter(1, sample_index[:, None], True)


def outside_batch(count: int, sample_index: Tensor, size: int = BATCH_KEYS) -> Tensor:  # -> (B, count) bool
    """Mask all keys but those of the query's own batch; a larger batch counts as several of ``size`` images.

    So the loss is of the same size on the images that relative weights are measured on as it is in a step.
    """
    allowed = torch.zeros(len(sample_index), count, dtype=torch.bool, device=sample_index.device)
    return ~allowed.scatter(1, sample_index.expand(len(sample_index), -1), together(sample_index, size))


def together(sample_index: Tensor, size: int = BATCH_KEYS) -> Tensor:  # -> (B, B) bool
    """Which images of a batch are in one group of ``size``; a single image that is left over joins the last group."""
    groups = max(1, (len(sample_index) + size - 2) // size)
    group = (torch.arange(len(sample_index), device=sample_index.device) // size).clamp(max=groups - 1)
    return group[:, None] == group[None]


@functools.cache
def _ranks(count: int, device: torch.device) -> Tensor:
    """The place of each key in a fixed random order, so that sorted images make no difference."""
    order = torch.randperm(count, generator=torch.Generator().manual_seed(_SUBSET_SEED))
    return order.argsort().to(device)  # once: a copy at each step would wait for the device
