"""A trained bias, transcribed with plain loops, in float64."""

from __future__ import annotations

import math

import numpy as np


def trained(bias, weight, offset):
    """b_k + ||w_k|| o_k."""
    result = np.zeros_like(bias)
    for k in range(len(bias)):
        result[k] = bias[k] + math.sqrt(sum(float(value) ** 2 for value in weight[k].flatten())) * offset[k]
    return result
