"""Soft rounding as AdaRound has it (Nagel et al. 2020), transcribed with plain loops, in float64."""

from __future__ import annotations

import math

import numpy as np

from tests.reference.quantize import clip


def rectified_sigmoid(v):
    return clip(1.2 / (1.0 + math.exp(-v)) - 0.1, 0.0, 1.0)


def inverse_rectified_sigmoid(share):
    return -math.log(1.2 / (share + 0.1) - 1.0)


def per_channel(function, weight, scale, zero_point, *more):
    """Apply a function of one number to each weight, with the scale and zero point of its channel (axis 0)."""
    result = np.zeros_like(weight)
    for index in np.ndindex(weight.shape):
        result[index] = function(weight[index], scale[index[0]], zero_point[index[0]], *(m[index] for m in more))
    return result


def soft_quantize(weight, v, scale, zero_point, q_min, q_max):
    def one(w, s, z, v):
        return s * (clip(math.floor(w / s) + rectified_sigmoid(v) + z, q_min, q_max) - z)

    return per_channel(one, weight, scale, zero_point, v)


def initial_v(weight, scale, zero_point):
    def one(w, s, z):
        return inverse_rectified_sigmoid(clip(w / s - math.floor(w / s), 1e-5, 1 - 1e-5))

    return per_channel(one, weight, scale, zero_point)


def harden(weight, v, scale, zero_point, q_min, q_max):
    def one(w, s, z, v):
        return clip(math.floor(w / s) + (1 if v >= 0 else 0) + z, q_min, q_max)

    return per_channel(one, weight, scale, zero_point, v)


def nearest(weight, scale, zero_point, q_min, q_max):
    def one(w, s, z):
        return clip(round(w / s) + z, q_min, q_max)

    return per_channel(one, weight, scale, zero_point)


def offset_quantize(weight, offset, scale, zero_point, q_min, q_max):
    def one(w, s, z, d):
        return s * (clip(round(w / s + d) + z, q_min, q_max) - z)

    return per_channel(one, weight, scale, zero_point, offset)


def offset_gradients(weight, offset, scale, zero_point, q_min, q_max, gradient):
    """In the offset and in each channel's scale; round(w / s + d) has the gradient of w / s + d."""
    of_offset, of_scale = np.zeros_like(weight), np.zeros_like(scale)
    for index in np.ndindex(weight.shape):
        s, z, g = scale[index[0]], zero_point[index[0]], gradient[index]
        steps = round(weight[index] / s + offset[index])
        if q_min <= steps + z <= q_max:
            of_offset[index] = g * s
            of_scale[index[0]] += g * (steps - weight[index] / s)
        else:
            of_scale[index[0]] += g * (clip(steps + z, q_min, q_max) - z)
    return of_offset, of_scale
