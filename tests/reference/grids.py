"""Logarithmic and twin grids with their straight-through gradients, transcribed with plain loops, in float64."""

from __future__ import annotations

import math

import numpy as np

from tests.reference import quantize


def log_quantize(x, scale, bits, per_octave):
    """RepQ-ViT, section 3.3: q = clamp(round(-n log2(x / s))), x_hat = s 2^(-q / n); here the last code is 0."""
    last = 2**bits - 1
    result = np.zeros_like(x)
    for index in np.ndindex(x.shape):
        if x[index] > 0:
            code = quantize.clip(round(-per_octave * math.log2(x[index] / scale)), 0, last)
            result[index] = 0.0 if code == last else scale * 2 ** (-code / per_octave)
    return result


def log_gradients(x, scale, bits, per_octave, gradient):
    """Q has slope 1 from 0 to where the first code ends; above that x_hat = s, below 0 it is 0."""
    represented = log_quantize(x, scale, bits, per_octave)
    gradient_x, gradient_scale = np.zeros_like(x), 0.0
    for index in np.ndindex(x.shape):
        if x[index] > scale * 2 ** (0.5 / per_octave):
            gradient_scale += gradient[index]
        elif x[index] >= 0:
            gradient_x[index] = gradient[index]
            gradient_scale += gradient[index] * (represented[index] - x[index]) / scale
    return gradient_x, gradient_scale


def twin_quantize(x, below, above, bits):
    """PTQ4ViT, section 3.1: half of the codes for each sign."""
    half = 2 ** (bits - 1)
    result = np.zeros_like(x)
    for index in np.ndindex(x.shape):
        if x[index] < 0:
            result[index] = below * quantize.clip(round(x[index] / below), -half, 0)
        else:
            result[index] = above * quantize.clip(round(x[index] / above), 0, half - 1)
    return result


def twin_gradients(x, below, above, bits, gradient):
    """Those of the uniform quantizer of each side."""
    half, is_below = 2 ** (bits - 1), x < 0
    sides = (below, -half, 0, is_below), (above, 0, half - 1, ~is_below)
    parts = [quantize.fake_quantize_gradients(x, s, 0, low, high, gradient * own) for s, low, high, own in sides]
    return parts[0][0] + parts[1][0], np.array([parts[0][1], parts[1][1]])
