"""Adam, with so little around it that it does not show in a step of a millisecond."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from clcalib.fused import calls

BETA_MEAN, BETA_SQUARE, EPSILON = 0.9, 0.999, 1e-8


class Adam:
    """p -= rate * m' / (sqrt(v') + epsilon) with the bias-corrected means m' of the gradient and v' of its square.

    Args:
        parameters: trained with one rate; those without a gradient are left alone.

    Source: Kingma and Ba 2015, algorithm 1, with its constants.
    """

    def __init__(self, parameters: Sequence[Tensor]) -> None:
        self._parameters = list(parameters)
        self._means = [torch.zeros_like(parameter) for parameter in self._parameters]
        self._squares = [torch.zeros_like(parameter) for parameter in self._parameters]
        self._steps = 0

    def forget_gradients(self) -> None:
        """Start a new step."""
        for parameter in self._parameters:
            parameter.grad = None

    @torch.no_grad()
    def step(self, rate: float) -> None:
        """Move all parameters once."""
        self._steps += 1
        biases = 1 - BETA_MEAN**self._steps, 1 - BETA_SQUARE**self._steps
        for parameter, mean, square in zip(self._parameters, self._means, self._squares, strict=True):
            gradient = parameter.grad
            if gradient is None:
                continue
            tensors = parameter, gradient, mean, square
            if calls.can_take(*tensors) and all(tensor.dtype == torch.float32 for tensor in tensors):
                if gradient.stride() != parameter.stride():
                    gradient = torch.empty_like(parameter).copy_(gradient)
                calls.adam(parameter, gradient, mean, square, rate, BETA_MEAN, BETA_SQUARE, EPSILON, *biases)
            else:
                mean.lerp_(gradient, 1 - BETA_MEAN)
                square.mul_(BETA_SQUARE).addcmul_(gradient, gradient, value=1 - BETA_SQUARE)
                root = square.sqrt().div_(math.sqrt(biases[1])).add_(EPSILON)
                parameter.addcdiv_(mean, root, value=-rate / biases[0])
