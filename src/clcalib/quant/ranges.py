"""Range rules: the scale and zero point that a tensor gets.  A frozen dataclass each, called as ``rule(tensor, spec)``.

* ``MinMax``: the whole range.
* ``Percentile``: the range without the outermost values.
* ``MseGrid``: the least sum of |x - x_hat|^p, p = 2.4, over the grid of ranges and zero points that the reference
  implementations of BRECQ and QDrop search.

Common to all: 0 is always representable; values of one sign (post-ReLU) spend no code on the other sign, so that
unsigned codes of values >= 0 have zero point 0; a constant c gets the scale |c|, which represents it exactly, and
all zeros get the scale 1; no scale is below ``SMALLEST_SCALE``.  ``Percentile`` and ``MseGrid`` see rows of more than
65,536 values as histograms (``condense.py``).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from clcalib.errors import ArgumentError, NumericalError
from clcalib.quant.condense import Histogram, condense
from clcalib.quant.grid_search import best_on_grid
from clcalib.quant.spec import PerChannel, QParams, QuantSpec

SMALLEST_SCALE = torch.finfo(torch.float32).tiny
OUTLIER_SHARE = 1e-4  # of the largest value: 1/40 of a step of 8 bits

RangeRule = Callable[[Tensor | Histogram, QuantSpec], QParams]


@dataclass(frozen=True)
class MinMax:
    """The whole range: asymmetric s = (max(x, 0) - min(x, 0)) / (2^b - 1), symmetric s = 2 max|x| / (2^b - 1)."""

    def __call__(self, tensor: Tensor | Histogram, spec: QuantSpec) -> QParams:
        """Args, Returns and Raises as in ``MseGrid``."""
        rows = _Rows.of(tensor, spec)
        return rows.qparams(*_cover(rows.lower, rows.upper, spec))


@dataclass(frozen=True)
class Percentile:
    """The range between the percentiles 100 - p and p (of |x| if symmetric), interpolated linearly.

    Where both are 0, as with few values other than 0, it is the whole range.

    Args:
        percent: p, above 50 and up to 100.

    Raises:
        ArgumentError: ``percent`` is out of its range.
    """

    percent: float = 99.9

    def __post_init__(self) -> None:
        if not 50 < self.percent <= 100:
            raise ArgumentError("percent", "a number above 50 and up to 100", self.percent)

    def __call__(self, tensor: Tensor | Histogram, spec: QuantSpec) -> QParams:
        """Args, Returns and Raises as in ``MseGrid``."""
        rows = _Rows.of(tensor, spec)
        share = self.percent / 100
        if spec.is_symmetric:
            (upper,) = _quantiles(*rows.condensed_sizes(), share)
            lower = -upper
        else:
            lower, upper = _quantiles(*rows.condensed(), 1 - share, share)
        is_empty = (lower == 0) & (upper == 0)
        lower, upper = torch.where(is_empty, rows.lower, lower), torch.where(is_empty, rows.upper, upper)
        return rows.qparams(*_cover(lower, upper, spec))


@dataclass(frozen=True)
class MseGrid:
    """The scale and zero point of the least sum |x - x_hat|^exponent.

    Asymmetric: the 2-D grid s = i / steps * (max(x, 0) - min(x, 0)) / (2^b - 1) for i = 1 .. steps, and every zero
    point; values of one sign have the zero point of their side.  Symmetric: s = i / steps * 2 max|x| / (2^b - 1).
    Around the best point the scale is refined between the points of the grid, so the error is at most that of the grid.

    Args:
        exponent: p of the error.
        steps: the number of scales in the grid; the reference code has 100 (80 for weights in BRECQ).

    Raises:
        ArgumentError: ``exponent`` is not positive, or ``steps`` not a whole number from 1.
    """

    exponent: float = 2.4
    steps: int = 100

    def __post_init__(self) -> None:
        if not (math.isfinite(self.exponent) and self.exponent > 0):
            raise ArgumentError("exponent", "a positive number", self.exponent)
        if type(self.steps) is not int or self.steps < 1:
            raise ArgumentError("steps", "a whole number from 1", repr(self.steps))

    def __call__(self, tensor: Tensor | Histogram, spec: QuantSpec) -> QParams:
        """Find the scale and the zero point.

        Args:
            tensor: the values x, of any float type and memory format  # shape: (*)
                Or, for one scale per tensor, what ``condense.gathered`` made of them.
            spec: the kind of quantizer.

        Returns:
            scale and zero point, float32  # shape: () per tensor, (1, .., C, .., 1) per channel

        Raises:
            ArgumentError: the tensor is empty, not a float tensor, or lacks the channel axis of ``spec``.
            NumericalError: a value is NaN or infinite.
        """
        rows = _Rows.of(tensor, spec)
        return rows.qparams(*best_on_grid(*rows.condensed(), spec, self.exponent, self.steps))


RANGE_RULES: Mapping[str, RangeRule] = {
    "minmax": MinMax(),
    "percentile": Percentile(),
    "mse_grid": MseGrid(),
}


def is_constant(tensor: Tensor | Histogram, spec: QuantSpec) -> Tensor:
    """Whether all values (of a channel) are the same, so that there is no range to speak of.

    Args:
        tensor: the values  # shape: (*)
        spec: says what shares a scale.

    Returns:
        bool  # shape: (C,); (1,) per tensor

    Raises:
        ArgumentError, NumericalError: as in ``MseGrid``.
    """
    rows = _Rows.of(tensor, spec)
    return rows.lower == rows.upper


def has_outliers(tensor: Tensor | Histogram, spec: QuantSpec) -> Tensor:
    """Whether more than half of the values (of a channel) that are not zero are below 1/10,000 of the largest one.

    No grid of up to 8 bits has room for both: one that reaches the largest value rounds the others to zero.

    Args:
        tensor: the values  # shape: (*)
        spec: says what shares a scale.

    Returns:
        bool  # shape: (C,); (1,) per tensor

    Raises:
        ArgumentError, NumericalError: as in ``MseGrid``.
    """
    rows = _Rows.of(tensor, spec)
    sizes = rows.values.abs()
    counts = torch.ones_like(sizes) if rows.counts is None else rows.counts
    limit = OUTLIER_SHARE * torch.maximum(rows.lower.abs(), rows.upper.abs())[:, None]
    small, all_ = (counts.masked_fill(~which, 0.0).sum(1) for which in ((sizes > 0) & (sizes < limit), sizes > 0))
    return small > all_ / 2


@dataclass(frozen=True, eq=False)
class _Rows:
    """A tensor as one row per scale, with its exact extremes, and the way back to the shape of the parameters."""

    values: Tensor  # (C, N) float32
    counts: Tensor | None  # (C, N) how often each occurs, where the rows are histograms already
    lower: Tensor  # (C,) min(x)
    upper: Tensor  # (C,) max(x)
    shape: tuple[int, ...]
    spec: QuantSpec

    @classmethod
    def of(cls, tensor: Tensor | Histogram, spec: QuantSpec) -> _Rows:
        if isinstance(tensor, Histogram):
            if isinstance(spec.granularity, PerChannel):
                raise ArgumentError("granularity", "one scale for a histogram", spec.granularity)
            return cls(tensor.middles, tensor.counts, tensor.lower, tensor.upper, (), spec)
        if not torch.is_floating_point(tensor) or tensor.numel() == 0:
            got = f"{tensor.dtype} of shape {tuple(tensor.shape)}"
            raise ArgumentError("tensor", "a float tensor with at least one value", got)
        tensor = tensor.detach().to(torch.float32)
        if isinstance(spec.granularity, PerChannel):
            axis = spec.granularity.axis
            if axis >= tensor.dim():
                raise ArgumentError("granularity", f"an axis below {tensor.dim()}", axis, "the tensor has no such axis")
            values = tensor.movedim(axis, 0).reshape(tensor.shape[axis], -1)
            shape = tuple(size if index == axis else 1 for index, size in enumerate(tensor.shape))
        else:
            values, shape = tensor.reshape(1, -1), ()
        lower, upper = torch.aminmax(values, dim=1)
        if not bool(torch.isfinite(lower).all() & torch.isfinite(upper).all()):  # both carry a NaN through
            raise NumericalError(f"tensor: expected finite values to find a range for, got NaN or infinity in {shape}")
        return cls(values, None, lower, upper, shape, spec)

    def condensed(self) -> tuple[Tensor, Tensor | None]:
        """The values, and how often each occurs where they are many."""
        return condense(self.values) if self.counts is None else (self.values, self.counts)

    def condensed_sizes(self) -> tuple[Tensor, Tensor | None]:
        """The same of their absolute values."""
        if self.counts is None:
            return condense(self.values.abs())
        sizes, order = self.values.abs().sort(1)
        return sizes, self.counts.gather(1, order)

    def qparams(self, scale: Tensor, zero: Tensor) -> QParams:  # (C,), (C,) in codes from 0
        size = torch.maximum(self.lower.abs(), self.upper.abs())
        is_constant = self.lower == self.upper
        scale = torch.where(is_constant, torch.where(size > 0, size, 1.0), scale).clamp_min(SMALLEST_SCALE)
        zero = torch.where(is_constant, _one_sided_zero(self.lower, self.spec), zero)
        zero_point = zero.round().clamp(0, self.spec.levels - 1) + self.spec.q_min
        return QParams(scale.reshape(self.shape), zero_point.reshape(self.shape))


def _cover(lower: Tensor, upper: Tensor, spec: QuantSpec) -> tuple[Tensor, Tensor]:  # (C,), (C,) -> (C,), (C,)
    """The scale and zero point (in codes from 0) that cover [lower, upper] and 0."""
    top = spec.levels - 1
    lower, upper = lower.clamp(max=0), upper.clamp(min=0)
    if spec.is_symmetric:
        scale = torch.maximum(-lower, upper) / (top / 2)
        return scale, torch.full_like(scale, spec.levels // 2)
    scale = (upper / top - lower / top).clamp_min(SMALLEST_SCALE)  # divided first: the range may exceed float32
    return scale, -lower / scale


def _one_sided_zero(values: Tensor, spec: QuantSpec) -> Tensor:  # (C,) -> (C,)
    """The zero point, in codes from 0, of values of one sign."""
    if spec.is_symmetric:
        return torch.full_like(values, spec.levels // 2)
    return torch.where(values < 0, float(spec.levels - 1), 0.0)


def _quantiles(values: Tensor, counts: Tensor | None, *shares: float) -> list[Tensor]:  # (C, N) twice -> (C,) each
    """Interpolated linearly between two values; in a histogram, the middle of the bin."""
    if counts is not None:
        cumulative = counts.double().cumsum(1)
        wanted = cumulative[:, -1:] * torch.tensor(shares, dtype=torch.float64, device=values.device)  # (C, shares)
        places = torch.searchsorted(cumulative, wanted).clamp_max(values.shape[1] - 1)
        return list(values.gather(1, places).unbind(1))
    ordered, last = values.sort(1).values, values.shape[1] - 1
    found = []
    for share in shares:
        below = min(int(share * last), last)
        found.append(torch.lerp(ordered[:, below], ordered[:, min(below + 1, last)], share * last - below))
    return found
