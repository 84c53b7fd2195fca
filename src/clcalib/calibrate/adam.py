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
        self._is_on_cpu = all(parameter.device.type == "cpu" for parameter in self._parameters)
        self._steps = [0] * len(self._parameters)

    def forget_gradients(self) -> None:
        """Start a new step."""
        for parameter in self._parameters:
            parameter.grad = None

    @torch.no_grad()
    def step(self, rate: float) -> None:
        """Move all parameters that have a gradient once."""
        rows: dict[int, list[Sequence[Tensor]]] = {}  # by the number of steps, the first one apart from the hundredth
        for at, (parameter, mean, square) in enumerate(zip(self._parameters, self._means, self._squares, strict=True)):
            if parameter.grad is not None:
                self._steps[at] += 1
                rows.setdefault(self._steps[at], []).append((parameter, parameter.grad, mean, square))
        for steps, together in rows.items():
            biases = 1 - BETA_MEAN**steps, 1 - BETA_SQUARE**steps
            if self._is_on_cpu:
                for tensors in together:
                    _step_alone(tensors, rate, biases)
            else:
                _step_together(together, rate, biases)


def _step_alone(tensors: Sequence[Tensor], rate: float, biases: tuple[float, float]) -> None:
    """In one pass where the compiled kernels can be had."""
    parameter, gradient, mean, square = tensors
    if calls.can_take(*tensors) and all(tensor.dtype == torch.float32 for tensor in tensors):
        if gradient.stride() != parameter.stride():
            gradient = torch.empty_like(parameter).copy_(gradient)
        calls.adam(parameter, gradient, mean, square, rate, BETA_MEAN, BETA_SQUARE, EPSILON, *biases)
    else:
        _step_together([tensors], rate, biases)


def _step_together(rows: Sequence[Sequence[Tensor]], rate: float, biases: tuple[float, float]) -> None:
    """Rows of parameter, gradient, mean and square: on a GPU each line is one launch for all of them."""
    parameters, gradients, means, squares = (list(column) for column in zip(*rows, strict=True))
    torch._foreach_lerp_(means, gradients, 1 - BETA_MEAN)
    torch._foreach_mul_(squares, BETA_SQUARE)
    torch._foreach_addcmul_(squares, gradients, gradients, value=1 - BETA_SQUARE)
    roots = torch._foreach_sqrt(squares)
    torch._foreach_div_(roots, math.sqrt(biases[1]))
    torch._foreach_add_(roots, EPSILON)
    torch._foreach_addcdiv_(parameters, means, roots, value=-rate / biases[0])
