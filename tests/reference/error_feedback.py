"""Rounding with error feedback, by the definition of Optimal Brain Quantization: a fresh inverse for every column.

After column j is rounded, the columns not yet rounded take up its error e so that ||(W - Q) X||^2 grows least:
w_F = w_F - e (H_F^-1)_Fj / (H_F^-1)_jj, where F holds j and all columns not yet rounded (GPTQ, equation 2).
"""

from __future__ import annotations

import numpy as np

from tests.reference.quantize import clip


def hessian(columns):
    """X X^T; columns: (K, samples)."""
    size = len(columns)
    result = np.zeros((size, size))
    for i in range(size):
        for j in range(size):
            result[i, j] = sum(columns[i] * columns[j])
    return result


def damped(plain, damping):
    return plain + damping * np.mean(np.diag(plain)) * np.eye(len(plain))


def codes(weight, scale, zero_point, q_min, q_max, plain, damping):
    """weight: (O, K), scale and zero_point: (O,), plain: (K, K) without damping."""
    matrix = damped(plain, damping)
    order = sorted(range(len(matrix)), key=lambda j: -plain[j, j])
    result = np.zeros_like(weight)
    for row in range(len(weight)):
        left = weight[row].copy()
        for position, j in enumerate(order):
            free = order[position:]
            inverse = np.linalg.inv(matrix[np.ix_(free, free)])
            code = clip(round(left[j] / scale[row]) + zero_point[row], q_min, q_max)
            error = left[j] - scale[row] * (code - zero_point[row])
            for place, k in enumerate(free):
                left[k] -= error * inverse[place, 0] / inverse[0, 0]
            result[row, j] = code
    return result


def patches(images, kernel, stride, padding, dilation, groups):
    """The patches behind each output of a convolution: for each group (K, samples), the channel slowest."""
    count, channels, height, width = images.shape
    padded = np.zeros((count, channels, height + 2 * padding[0], width + 2 * padding[1]))
    padded[:, :, padding[0] : padding[0] + height, padding[1] : padding[1] + width] = images
    reach = [dilation[axis] * (kernel[axis] - 1) for axis in (0, 1)]
    groups_of_columns = [[] for _ in range(groups)]
    per_group = channels // groups
    for image in padded:
        for y in range(0, padded.shape[2] - reach[0], stride[0]):
            for x in range(0, padded.shape[3] - reach[1], stride[1]):
                patch = image[:, y : y + reach[0] + 1 : dilation[0], x : x + reach[1] + 1 : dilation[1]]
                for group in range(groups):
                    groups_of_columns[group].append(patch[group * per_group : (group + 1) * per_group].ravel())
    return [np.array(columns).T for columns in groups_of_columns]
