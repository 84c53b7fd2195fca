"""Uniform affine quantization and the gradients of LSQ, transcribed with plain loops, in float64."""

from __future__ import annotations

import numpy as np


def clip(value, lowest, highest):
    return min(max(value, lowest), highest)


def fake_quantize(x, scale, zero_point, q_min, q_max):
    """x_hat = (clamp(round(x / s) + z, q_min, q_max) - z) * s; Python rounds halves to even, too."""
    result = np.zeros_like(x)
    for index in np.ndindex(x.shape):
        code = clip(round(x[index] / scale) + zero_point, q_min, q_max)
        result[index] = (code - zero_point) * scale
    return result


def fake_quantize_gradients(x, scale, zero_point, q_min, q_max, gradient):
    """The gradients in x and s; Esser et al. 2020, equations 3 and 5."""
    gradient_x, gradient_scale = np.zeros_like(x), 0.0
    for index in np.ndindex(x.shape):
        steps = x[index] / scale
        code = round(steps) + zero_point
        if code < q_min:
            gradient_scale += gradient[index] * (q_min - zero_point)
        elif code > q_max:
            gradient_scale += gradient[index] * (q_max - zero_point)
        else:
            gradient_scale += gradient[index] * (round(steps) - steps)
            gradient_x[index] = gradient[index]
    return gradient_x, gradient_scale


def pack(codes, bits):
    """The bit stream, bit by bit: code k has the bits k * b .. k * b + b - 1, byte j the bits 8 * j .. 8 * j + 7."""
    stream = [(int(code) >> bit) & 1 for code in codes for bit in range(bits)]
    stream += [0] * (-len(stream) % 8)
    return [sum(stream[start + bit] << bit for bit in range(8)) for start in range(0, len(stream), 8)]
