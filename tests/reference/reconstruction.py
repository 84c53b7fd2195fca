"""Reconstruction errors and the rounding penalty, transcribed with plain loops."""

from __future__ import annotations

import math

import numpy as np


def lp_error(output, target, exponent):
    """Sum over channels (axis 1 after moving tokens' channels there), mean over batch and space."""
    if output.ndim == 3:
        output, target = np.moveaxis(output, 2, 1), np.moveaxis(target, 2, 1)
    batch, channels = output.shape[:2]
    flat_output, flat_target = output.reshape(batch, channels, -1), target.reshape(batch, channels, -1)
    total, places = 0.0, 0
    for n in range(batch):
        for place in range(flat_output.shape[2]):
            places += 1
            for c in range(channels):
                total += abs(flat_output[n, c, place] - flat_target[n, c, place]) ** exponent
    return total / places


def fisher_error(output, target, squared_gradient):
    batch, channels = output.shape[:2]
    shape = (batch, channels, -1)
    a, b, g = output.reshape(shape), target.reshape(shape), squared_gradient.reshape(shape)
    total = 0.0
    for n in range(batch):
        for place in range(a.shape[2]):
            total += sum((a[n, c, place] - b[n, c, place]) ** 2 * g[n, c, place] for c in range(channels))
    return total / (batch * a.shape[2])


def rounding_penalty(rounding, beta):
    return sum(1 - abs(2 * h - 1) ** beta for layer in rounding for h in layer.flatten())


def prediction_difference(logits, float_logits, temperature):
    """mean_i sum_c p_F log(p_F / p_Q), the probabilities at the temperature."""
    total = 0.0
    for z, z_float in zip(logits, float_logits, strict=True):
        p = [math.exp(value / temperature) for value in z]
        p_float = [math.exp(value / temperature) for value in z_float]
        for one, other in zip(p, p_float, strict=True):
            share, float_share = one / sum(p), other / sum(p_float)
            total += float_share * math.log(float_share / share)
    return total / len(logits)


def feature_error(features, float_features):
    """Sum over channels, mean over the batch."""
    rows = zip(features, float_features, strict=True)
    total = sum((a - b) ** 2 for row, other in rows for a, b in zip(row, other, strict=True))
    return total / len(features)


def statistics_error(entering, running_mean, running_variance, epsilon, counts):
    """mean over images of sum over channels of squared errors of mean and deviation of what enters a batch norm.

    ``entering`` is (B, C, *spatial); ``counts`` says which channels count.
    """
    total = 0.0
    for image in entering:
        for c in range(image.shape[0]):
            values = [float(value) for value in image[c].flatten()]
            mean = sum(values) / len(values)
            variance = sum((value - mean) ** 2 for value in values) / len(values)
            deviation = math.sqrt(variance + epsilon) - math.sqrt(running_variance[c] + epsilon)
            total += counts[c] * ((mean - running_mean[c]) ** 2 + deviation**2)
    return total / len(entering)
