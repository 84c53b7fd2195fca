"""The error of all units at once, element by element."""

from __future__ import annotations

import numpy as np


def network_error(cuts, end_weight, unit_weight=1.0):
    """cuts: (output, target, error at the start), channels on axis 1."""
    total = 0.0
    for place, (output, target, start) in enumerate(cuts):
        output, target = np.asarray(output, np.float64), np.asarray(target, np.float64)
        error = 0.0
        for image in range(output.shape[0]):
            error += float(((output[image] - target[image]) ** 2).sum())
        error /= output.shape[0] * int(np.prod(output.shape[2:]))
        total += error / start * (end_weight if place == len(cuts) - 1 else unit_weight)
    return total / len(cuts)
