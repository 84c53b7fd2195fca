"""The search for the scale and zero point of the least error, by branch and bound: exact, and 10 to 1000 times cheaper.

A candidate is a scale s and a zero point z (in codes from 0 to L = 2^b - 1); it represents [-z s, (L - z) s].  Its
error is a sum over the values, sum |x - x_hat|^p.  The values outside of that range alone give a lower bound::

    E(s, z) >= sum_{x < -z s} (-z s - x)^p + sum_{x > (L - z) s} (x - (L - z) s)^p

Each of the two sums depends on one end of the range only and falls as the end moves out.  So both are tabulated once
on a coarse mesh of ends, looked up for all candidates (rounded outwards, which keeps the bound valid), and only the
candidates whose bound is below the error of the most promising ones are evaluated.  At 8 bits these are a few in a
thousand; the best point of the full grid is always among them.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from clcalib.fused import calls
from clcalib.quant.spec import QuantSpec

_MESH = 64  # ends in the table of each side
_PROMISING = 16  # candidates per row whose error gives the first upper bound
_FEW = 512  # up to so many candidates, evaluating all is cheaper than the table
_GRID_ELEMENTS = 1 << 20  # (rows x candidates) at once
_CHUNK_ELEMENTS = 1 << 16  # (candidates x values) at once: the working set of one evaluation stays in the cache
_DEVICE_CHUNK_ELEMENTS = 1 << 24  # where launches cost more than memory
_REFINEMENT = 10  # scales between two points of the grid
_SLACK = 1e-4  # keeps the bound valid under float32 rounding


def best_on_grid(
    values: Tensor, counts: Tensor | None, spec: QuantSpec, exponent: float, steps: int
) -> tuple[Tensor, Tensor]:
    """The scale and zero point of the least sum |x - x_hat|^exponent, for each row.

    Args:
        values: the values  # shape: (C, N)
        counts: how often each value occurs; None where each does once  # shape: (C, N)
        spec: the kind of quantizer.
        exponent: p.
        steps: the number of scales in the grid.

    Returns:
        scale, and zero point counted from the smallest code  # shape: (C,), (C,)
    """
    size = values.abs().amax(1).clamp_min(torch.finfo(torch.float32).tiny)
    ratio, zero = _candidates(spec, steps, values.device)
    scale = torch.empty_like(size)
    best_zero = torch.empty_like(size)
    for rows in _slices(len(size), max(1, _GRID_ELEMENTS // len(ratio))):
        # Each row is searched in units of its largest value, so that no power under- or overflows.
        relative = values[rows] / size[rows, None]
        search = _Search(relative, None if counts is None else counts[rows], spec, exponent)
        best_scale, best_zero[rows] = search.refine(*search.best(ratio, zero), steps)
        scale[rows] = best_scale * size[rows]
    return scale, best_zero


class _Search:
    """The search in a block of rows whose largest absolute value is 1."""

    def __init__(self, values: Tensor, counts: Tensor | None, spec: QuantSpec, exponent: float) -> None:
        self.values = values.contiguous()  # (C, N)
        self.counts = None if counts is None else counts.contiguous()  # (C, N) or None
        self.spec = spec
        self.top = spec.levels - 1
        self.exponent = exponent
        lower, upper = torch.aminmax(values, dim=1)
        self.lower = (-lower).clamp_min(0)  # (C,) how far a row reaches below 0
        self.upper = upper.clamp_min(0)  # (C,) how far above
        reach = self.lower + self.upper
        self.unit = torch.where((reach > 0) & (not spec.is_symmetric), reach, 1.0)  # (C,) of the scales in the grid

    def best(self, ratio: Tensor, zero: Tensor) -> tuple[Tensor, Tensor]:  # (K,), (K,) -> (C,), (C,)
        """The best candidate of each row: scale and zero point."""
        scale = self.unit[:, None] * ratio  # (C, K)
        bound = torch.where(self._is_allowed(zero), 0.0, torch.inf)  # (C, K)
        if int((bound == 0).sum(1).max()) > _FEW:
            bound += self._clipping_bound(scale, zero)
        estimate = bound + self._size() * _mean_rounding_error(self.exponent) * scale**self.exponent
        rows = torch.arange(len(scale), device=scale.device)
        promising = estimate.topk(min(_PROMISING, len(zero)), largest=False).indices  # (C, P)
        flat_rows = rows[:, None].expand_as(promising).reshape(-1)
        errors = torch.full_like(scale, torch.inf)  # (C, K)
        flat = promising.reshape(-1)
        errors[flat_rows, flat] = self._errors(flat_rows, scale[flat_rows, flat], zero[flat])
        errors.masked_fill_(bound.isinf(), torch.inf)
        limit = errors.min(1, keepdim=True).values * (1 + _SLACK)
        is_left = (bound * (1 - _SLACK) <= limit) & errors.isinf() & ~bound.isinf()
        left_rows, left = torch.nonzero(is_left, as_tuple=True)
        errors[left_rows, left] = self._errors(left_rows, scale[left_rows, left], zero[left])
        chosen = errors.argmin(1)
        return scale[rows, chosen], zero[chosen]

    def refine(self, scale: Tensor, zero: Tensor, steps: int) -> tuple[Tensor, Tensor]:  # (C,), (C,) -> (C,), (C,)
        """The best scale between the neighbours on the grid, for the zero point and the two beside it."""
        distance = self._grid_distance(steps)  # (C,)
        offsets = torch.arange(1 - _REFINEMENT, _REFINEMENT, device=scale.device) / _REFINEMENT
        shifts = torch.tensor([0.0] if self.spec.is_symmetric else [-1.0, 0.0, 1.0], device=scale.device)
        scales = scale[:, None] + distance[:, None] * offsets  # (C, R)
        scales = torch.where(scales > 0, scales, scale[:, None]).repeat_interleave(len(shifts), dim=1)
        zeros = (zero[:, None] + shifts.repeat(len(offsets))).clamp(0, self.top)  # (C, R * 3)
        zeros = torch.where(self._is_allowed(zeros), zeros, zero[:, None])
        rows = torch.arange(len(scale), device=scale.device)
        flat_rows = rows[:, None].expand_as(scales).reshape(-1)
        errors = self._errors(flat_rows, scales.reshape(-1), zeros.reshape(-1)).view_as(scales)
        chosen = errors.argmin(1)
        return scales[rows, chosen], zeros[rows, chosen]

    def _size(self) -> Tensor | int:  # (C, 1) or a number
        return self.values.shape[1] if self.counts is None else self.counts.sum(1, keepdim=True)

    def _grid_distance(self, steps: int) -> Tensor:  # (C,)
        return self.unit * ((2.0 if self.spec.is_symmetric else 1.0) / (steps * self.top))

    def _is_allowed(self, zero: Tensor) -> Tensor:  # (K,) or (C, K) -> (C, K)
        """Values of one sign have the zero point of their side: every code that they do not need is wasted."""
        if self.spec.is_symmetric:
            return torch.ones(len(self.values), zero.shape[-1], dtype=torch.bool, device=zero.device)
        has_negative, has_positive = (self.lower > 0)[:, None], (self.upper > 0)[:, None]
        return (has_negative | (zero == 0)) & (has_positive | ~has_negative | (zero == self.top))

    def _clipping_bound(self, scale: Tensor, zero: Tensor) -> Tensor:  # (C, K), (K,) -> (C, K)
        below = self._clipped(-self.values, self.lower, scale * zero)
        return below + self._clipped(self.values, self.upper, scale * (self.top - zero))

    def _clipped(self, values: Tensor, reach: Tensor, end: Tensor) -> Tensor:  # (C, N), (C,), (C, K) -> (C, K)
        """A lower bound of sum_{x > end} (x - end)^p, from a mesh that is denser towards the largest value."""
        mesh = 1 - (1 - torch.arange(_MESH, device=values.device) / _MESH) ** 2  # (M,) in units of reach
        table = torch.zeros(len(values), _MESH + 1, device=values.device)  # nothing is beyond the largest value
        for column in range(_MESH):
            excess = (values - (mesh[column] * reach)[:, None]).clamp_min_(0).pow_(self.exponent)
            table[:, column] = (excess if self.counts is None else excess.mul_(self.counts)).sum(1)
        share = (1 - end / reach.clamp_min(torch.finfo(torch.float32).tiny)[:, None]).clamp(0, 1)
        index = torch.ceil(_MESH * (1 - share.sqrt()) + _SLACK).clamp(0, _MESH)
        return table.gather(1, index.to(torch.int64))

    def _errors(self, rows: Tensor, scale: Tensor, zero: Tensor) -> Tensor:  # (P,), (P,), (P,) -> (P,)
        """Return sum |x - x_hat|^p of P candidates, each on the row that it names."""
        if calls.can_take(self.values) and len(rows):
            arguments = (rows.contiguous(), scale.contiguous(), zero.contiguous(), self.top, self.exponent)
            return calls.grid_errors(self.values, self.counts, *arguments) * scale**self.exponent
        totals = torch.empty_like(scale)
        chunk = _CHUNK_ELEMENTS if self.values.device.type == "cpu" else _DEVICE_CHUNK_ELEMENTS
        for part in _slices(len(rows), max(1, chunk // self.values.shape[1])):
            # round(x / s + z) differs from round(x / s) + z on ties only, where both have the same error.
            codes = self.values.index_select(0, rows[part]).div_(scale[part, None]).add_(zero[part, None])
            difference = codes.round().clamp_(0, self.top).sub_(codes)
            errors = difference.abs_().pow_(self.exponent)
            if self.counts is not None:
                errors.mul_(self.counts.index_select(0, rows[part]))
            totals[part] = errors.sum(1)
        return totals * scale**self.exponent


def _candidates(spec: QuantSpec, steps: int, device: torch.device) -> tuple[Tensor, Tensor]:  # (K,), (K,)
    """The grid: scales, relative to the range (to the largest absolute value if symmetric), and zero points."""
    top = spec.levels - 1
    shrink = torch.arange(1, steps + 1, device=device) / steps
    if spec.is_symmetric:
        return shrink * (2 / top), torch.full_like(shrink, spec.levels // 2)
    zeros = torch.arange(spec.levels, device=device, dtype=torch.float32)
    return (shrink / top).repeat_interleave(spec.levels), zeros.repeat(steps)


def _mean_rounding_error(exponent: float) -> float:
    """The mean of |u|^p for u uniform on [-1/2, 1/2]."""
    return float(0.5**exponent / (exponent + 1))


def _slices(count: int, size: int) -> Iterator[slice]:
    for start in range(0, count, size):
        yield slice(start, min(start + size, count))
