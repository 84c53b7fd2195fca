"""Slow attention: one query after the other."""

from __future__ import annotations

import math

import numpy as np


def attention(query, key, value, *, mask=None, is_causal=False, scale=None):
    """softmax(scale * q k^T + mask) v, (B, heads, tokens, width); a mask of bools says who may be looked at."""
    batch, heads, tokens, width = query.shape
    scale = 1 / math.sqrt(width) if scale is None else scale
    result = np.zeros(query.shape)
    for b in range(batch):
        for h in range(heads):
            shared = h * key.shape[1] // heads
            for t in range(tokens):
                scores = np.array([scale * float(query[b, h, t] @ other) for other in key[b, shared]])
                if is_causal:
                    scores[t + 1 :] = -math.inf
                if mask is not None:
                    scores = np.where(mask[t], scores, -math.inf) if mask.dtype == bool else scores + mask[t]
                if scores.max() == -math.inf:
                    continue  # nothing to look at
                shares = np.exp(scores - scores.max())
                shares /= shares.sum()
                result[b, h, t] = sum(share * v for share, v in zip(shares, value[b, shared], strict=True))
    return result
