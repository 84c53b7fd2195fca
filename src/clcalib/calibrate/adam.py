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
        self.parameters = tuple(parameters)
        self._means = [torch.zeros_like(parameter) for parameter in self.parameters]
        self._squares = [torch.zeros_like(parameter) for parameter in self.parameters]
        self._is_on_cpu = all(parameter.device.type == "cpu" for parameter in self.parameters)
        self._steps = [0] * len(self.parameters)
        columns = zip(self.parameters, self._means, self._squares, strict=True)
        self._is_fused = [_can_take(*tensors) for tensors in columns]  # asked once: they stay where they are

    def forget_gradients(self) -> None:
        """Start a new step."""
        for parameter in self.parameters:
            parameter.grad = None

    @torch.no_grad()
    def step(self, rate: float) -> None:
        """Move all parameters that have a gradient once."""
        moved, together = self._by_steps()
        self.count(moved)
        for members in together:
            biases = _biases(self._steps[members[0]])
            if self._is_on_cpu:
                for at in members:
                    _step_alone(self._row(at), rate, biases, is_fused=self._is_fused[at])
            else:
                _step_together([self._row(at) for at in members], *_factors(rate, biases))

    @torch.no_grad()
    def step_by(self, factors: Tensor) -> list[int]:
        """As ``step``, with every number that changes from step to step in a tensor; the step is left to be counted.

        Args:
            factors: the numbers of ``factors``, on the parameters' device  # shape: (P, 2) float64

        Returns:
            the parameters that were moved, for ``count``.
        """
        moved, together = self._by_steps()
        for members in together:
            rows = [self._row(at) for at in members]
            _step_together(rows, *factors[members[0]].to(rows[0][0].dtype).unbind())
        return moved

    def count(self, moved: Sequence[int]) -> None:
        """Count a step of these parameters."""
        for at in moved:
            self._steps[at] += 1

    def factors(self, rate: float) -> list[tuple[float, float]]:
        """By parameter, what its next step depends on beside its gradients: -rate / (1 - b^t) and sqrt(1 - b'^t)."""
        by_steps = {steps: _factors(rate, _biases(steps + 1)) for steps in set(self._steps)}
        return [by_steps[steps] for steps in self._steps]

    def partition(self) -> tuple[int, ...]:
        """By parameter, the first one that has taken as many steps: those move together."""
        return tuple(self._steps.index(steps) for steps in self._steps)

    def state(self) -> list[Tensor]:
        """All tensors that a step changes."""
        return [*self.parameters, *self._means, *self._squares]

    def steps(self) -> list[int]:
        """By parameter, how many steps it has taken."""
        return list(self._steps)

    @torch.no_grad()
    def restore(self, tensors: Sequence[Tensor], steps: Sequence[int]) -> None:
        """Take over the tensors of ``state`` and the numbers of ``steps``, of an optimiser over equal parameters.

        Raises:
            ValueError: they are of other parameters.
        """
        own = self.state()
        if [tensor.shape for tensor in own] != [tensor.shape for tensor in tensors] or len(steps) != len(self._steps):
            raise ValueError("parameters of other shapes")
        for tensor, value in zip(own, tensors, strict=True):
            tensor.copy_(value)
        self._steps = [int(number) for number in steps]

    def _by_steps(self) -> tuple[list[int], list[list[int]]]:
        """The parameters with a gradient; and in groups, by the number of steps, the first one apart from the 100th."""
        moved = [at for at, parameter in enumerate(self.parameters) if parameter.grad is not None]
        together: dict[int, list[int]] = {}
        for at in moved:
            together.setdefault(self._steps[at], []).append(at)
        return moved, list(together.values())

    def _row(self, at: int) -> tuple[Tensor, ...]:
        parameter = self.parameters[at]
        assert parameter.grad is not None
        return parameter, parameter.grad, self._means[at], self._squares[at]


def _biases(steps: int) -> tuple[float, float]:
    return 1 - BETA_MEAN**steps, 1 - BETA_SQUARE**steps


def _factors(rate: float, biases: tuple[float, float]) -> tuple[float, float]:
    return -rate / biases[0], math.sqrt(biases[1])


def _can_take(*tensors: Tensor) -> bool:
    return all(tensor.dtype == torch.float32 for tensor in tensors) and calls.can_take(*tensors)


def _step_alone(tensors: Sequence[Tensor], rate: float, biases: tuple[float, float], *, is_fused: bool) -> None:
    """In one pass where the compiled kernels can be had."""
    parameter, gradient, mean, square = tensors
    if is_fused and _can_take(gradient):
        if gradient.stride() != parameter.stride():
            gradient = torch.empty_like(parameter).copy_(gradient)
        calls.adam(parameter, gradient, mean, square, rate, BETA_MEAN, BETA_SQUARE, EPSILON, *biases)
    else:
        _step_together([tensors], *_factors(rate, biases))


def _step_together(rows: Sequence[Sequence[Tensor]], factor: float | Tensor, root: float | Tensor) -> None:
    """Rows of parameter, gradient, mean and square: on a GPU each line is one launch for all of them.

    Tensors () for -rate / (1 - b^t) and sqrt(1 - b'^t) have the type of the parameters.
    """
    parameters, gradients, means, squares = (list(column) for column in zip(*rows, strict=True))
    torch._foreach_lerp_(means, gradients, 1 - BETA_MEAN)
    torch._foreach_mul_(squares, BETA_SQUARE)
    torch._foreach_addcmul_(squares, gradients, gradients, value=1 - BETA_SQUARE)
    roots = torch._foreach_sqrt(squares)
    torch._foreach_div_(roots, root)
    torch._foreach_add_(roots, EPSILON)
    if isinstance(factor, Tensor):
        steps = torch._foreach_mul(means, factor)
        torch._foreach_div_(steps, roots)
        torch._foreach_add_(parameters, steps)
    else:
        torch._foreach_addcdiv_(parameters, means, roots, value=factor)
