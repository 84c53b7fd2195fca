"""Lower bounds on the mutual information of quantized and float activations, from contrastive critics.

Every critic gives a valid bound; a better one gives a tighter bound.  With the frozen remainder g in front, what is
bounded is I(g(A_F); g(A_Q)), which is at most I(A_F; A_Q).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F


def info_nce_bound(scores: Tensor) -> float:
    """I >= log K - mean_i -log( e^{s_ii} / sum_j e^{s_ij} ), in nats; at most log K.

    Args:
        scores: (K, K), the positives on the diagonal.

    Source: van den Oord et al. 2018, eq. 5; Poole et al. 2019, section 2.3.
    """
    count = len(scores)
    loss = F.cross_entropy(scores.cpu().double(), torch.arange(count))
    return math.log(count) - float(loss)


def binary_nce_bound(logits: Tensor) -> float:
    """I >= log N - L with L = -E_joint log h - N E_product log(1 - h), h = sigmoid(logits), in nats.

    Args:
        logits: (K, K), pairs from the joint on the diagonal, from the product of the marginals off it; N = K - 1.

    Source: Tian et al. 2020, eqs. 9 to 13.  The negatives are summed: with a mean the bound does not hold.
    """
    count = len(logits)
    logits = logits.cpu().double()
    positive = F.softplus(-logits.diagonal()).mean()
    off_diagonal = ~torch.eye(count, dtype=torch.bool)
    negative = F.softplus(logits)[off_diagonal].mean() * (count - 1)
    return math.log(count - 1) - float(positive + negative)


def feature_bound(queries: Tensor, keys: Tensor, temperature: float = 0.1) -> float:
    """``info_nce_bound`` with the cosine critic, queries g(a_Q) and keys g(a_F), both (K, d)."""
    scores = F.normalize(queries, dim=1) @ F.normalize(keys, dim=1).T
    return info_nce_bound(scores / temperature)
