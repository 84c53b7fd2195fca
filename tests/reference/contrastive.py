"""The contrastive losses and critics, transcribed with plain loops from the formulas of the papers."""

from __future__ import annotations

import math

import numpy as np


def cosine_scores(queries, keys, temperature, centre=None):
    scores = np.zeros((len(queries), len(keys)))
    for i, query in enumerate(queries):
        for j, key in enumerate(keys):
            a = query if centre is None else query - centre
            b = key if centre is None else key - centre
            dot = sum(x * y for x, y in zip(a, b, strict=True))
            lengths = math.sqrt(sum(x * x for x in a)) * math.sqrt(sum(y * y for y in b))
            scores[i, j] = dot / lengths / temperature
    return scores


def negatives_of(i, positive, excluded):
    return [j for j in range(excluded.shape[1]) if j != positive[i] and not excluded[i, j]]


def info_nce(scores, positive, excluded):
    total = 0.0
    for i, p in enumerate(positive):
        denominator = math.exp(scores[i, p])
        for j in negatives_of(i, positive, excluded):
            denominator += math.exp(scores[i, j])
        total += -math.log(math.exp(scores[i, p]) / denominator)
    return total / len(positive)


def sigmoid_nce(scores, positive, excluded):
    total = 0.0
    for i, p in enumerate(positive):
        total += -math.log(1 / (1 + math.exp(-scores[i, p])))
        negatives = negatives_of(i, positive, excluded)
        for j in negatives:
            total += -math.log(1 - 1 / (1 + math.exp(-scores[i, j]))) / len(negatives)
    return total / len(positive)


def crd_nce(scores, positive, excluded, constant=1.0):
    total = 0.0
    for i, p in enumerate(positive):
        negatives = negatives_of(i, positive, excluded)
        ratio = len(negatives) / scores.shape[1]

        def critic(s, ratio=ratio):
            return (math.exp(s) / constant) / (math.exp(s) / constant + ratio)

        total += -math.log(critic(scores[i, p]))
        for j in negatives:
            total += -math.log(1 - critic(scores[i, j]))
    return total / len(positive)


def normalised_crd_nce(scores, positive, excluded):
    mean = sum(math.exp(s) for s in scores.flatten()) / scores.size
    return crd_nce(scores, positive, excluded, mean)
