"""Grids other than the uniform one: for the softmax of attention, and for what leaves a GELU.

* ``log2``, ``log_sqrt2``: x_hat = s * 2^(-q / n), n = 1 or 2, q = clamp(round(-n log2(x / s)), 0, 2^b - 1), and 0 for
  the last code.  The softmax has a few large shares and very many small ones.  Sources: FQ-ViT (Lin et al., IJCAI
  2022), section 3.3, log2; RepQ-ViT (Li et al., ICCV 2023), section 3.3, log sqrt 2.
* ``twin``: one step for values below 0 and another one for those above, half of the codes for each.  A GELU goes down
  to -0.17 only.  Source: PTQ4ViT (Yuan et al., ECCV 2022), section 3.1.

Straight-through gradients: with x_hat = s * Q(x / s), dQ(u) / du = 1 within the range, so that d x_hat / ds =
(x_hat - x) / s there, as LSQ has it for the uniform grid.

*Deviations*: the last code of the logarithmic grids is 0 (in RepQ-ViT's code 0 comes on top of the 2^b codes); s is
searched by the least error, and no scale is moved into a bit shift.  PTQ4ViT ties its two steps by a power of 2.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from clcalib.errors import NumericalError
from clcalib.quant.condense import Histogram, condense
from clcalib.quant.functional import clamp_inclusive, fake_quantize
from clcalib.quant.ranges import RangeRule
from clcalib.quant.spec import QParams, QuantSpec

FakeQuantize = Callable[[Tensor, Tensor, Tensor, int, int], Tensor]

_EXPONENT, _STEPS = 2.4, 100  # of the search, as for uniform grids


def log_quantize(x: Tensor, scale: Tensor, zero_point: Tensor, q_min: int, q_max: int, *, per_octave: int) -> Tensor:
    """s * 2^(-q / n) with q = clamp(round(-n log2(x / s)), 0, q_max), and 0 where q = q_max.

    Args:
        x: the values; those below 0 become 0  # shape: (*)
        scale: s, the largest value of the grid  # shape: broadcastable to (*)
        zero_point: not used; the last code is the value 0.
        q_min: 0.
        q_max: the last code.
        per_octave: n, how many values of the grid lie between s and s / 2.

    Returns:
        the values on the grid, with a straight-through gradient  # shape: (*)

    Example:
        >>> one, none = torch.tensor(1.0), torch.tensor(0.0)
        >>> log_quantize(torch.tensor([0.9, 0.3, 0.1]), one, none, 0, 3, per_octave=1)
        tensor([1.0000, 0.2500, 0.0000])
    """
    ratio = clamp_inclusive(x / scale, 0.0, 2.0 ** (0.5 / per_octave))
    codes = torch.round(-per_octave * torch.log2(ratio.detach())).clamp(0, q_max)
    values = torch.where(codes == q_max, 0.0, torch.exp2(-codes / per_octave))
    return (values + (ratio - ratio.detach())) * scale


def twin_quantize(x: Tensor, scale: Tensor, zero_point: Tensor, q_min: int, q_max: int) -> Tensor:
    """s_- * clamp(round(x / s_-), q_min, 0) for x < 0, else s_+ * clamp(round(x / s_+), 0, q_max).

    Args:
        x: the values  # shape: (*)
        scale: s_- and s_+  # shape: (2,), or (2, ...) with the rest broadcastable to (*)
        zero_point: not used; 0 is the value 0.
        q_min: -2^(b-1).
        q_max: 2^(b-1) - 1.

    Returns:
        the values on the grid  # shape: (*)

    Example:
        >>> scale = torch.tensor([0.1, 1.0])
        >>> twin_quantize(torch.tensor([-0.13, 1.3, 9.0]), scale, torch.zeros(2), -2, 1)
        tensor([-0.1000,  1.0000,  1.0000])
    """
    none = zero_point.new_zeros(())
    below, above = scale[0], scale[1]
    return torch.where(x < 0, fake_quantize(x, below, none, q_min, 0), fake_quantize(x, above, none, 0, q_max))


GRIDS: Mapping[str, FakeQuantize] = {
    "uniform": fake_quantize,
    "log2": functools.partial(log_quantize, per_octave=1),
    "log_sqrt2": functools.partial(log_quantize, per_octave=2),
    "twin": twin_quantize,
}
SOFTMAX_GRIDS, GELU_GRIDS = ("uniform", "log2", "log_sqrt2"), ("uniform", "twin")


def activation_range(tensor: Tensor | Histogram, spec: QuantSpec, rule: RangeRule) -> QParams:
    """The range of an activation: by ``rule`` on the uniform grid, by the least sum |x - x_hat|^2.4 on the others.

    Raises:
        NumericalError: a value is not finite.
    """
    if spec.grid == "uniform":
        return rule(tensor, spec)
    if isinstance(tensor, Histogram):
        values, counts = tensor.middles, tensor.counts
    else:
        if not bool(torch.isfinite(tensor).all()):
            raise NumericalError("tensor: expected finite values to find a range for, got NaN or infinity")
        values, counts = _counted(tensor)
    if spec.grid == "twin":
        negative = _search(values.clamp(max=0), counts, spec, -spec.q_min, lambda s: torch.stack((s, s)))
        positive = _search(values.clamp(min=0), counts, spec, spec.q_max, lambda s: torch.stack((s, s)))
        scale = torch.stack((negative, positive))
    else:
        scale = _search(values, counts, spec, 1, lambda s: s)
    return QParams(scale, torch.zeros_like(scale))


def range_shape(spec: QuantSpec) -> tuple[int, ...]:
    """The shape of the scale and zero point that ``activation_range`` finds; a twin grid has a step for either sign."""
    return (2,) if spec.grid == "twin" else ()


def _counted(tensor: Tensor) -> tuple[Tensor, Tensor]:  # -> (1, N) twice
    values, counts = condense(tensor.detach().float().reshape(1, -1))
    return values, torch.ones_like(values) if counts is None else counts


def _search(
    values: Tensor, counts: Tensor, spec: QuantSpec, steps_to_end: int, form: Callable[[Tensor], Tensor]
) -> Tensor:  # (1, N), (1, N) -> ()
    """The scale of the least error among those whose range ends at i / 100 of the largest value."""
    size = values.abs().amax()
    if float(size) == 0.0:
        return torch.ones_like(size)
    scales = size * torch.arange(1, _STEPS + 1, device=values.device) / (_STEPS * steps_to_end)
    errors = []
    for scale in scales:
        quantized = GRIDS[spec.grid](values, form(scale), torch.zeros_like(form(scale)), spec.q_min, spec.q_max)
        errors.append((((values - quantized).abs() / size).pow(_EXPONENT) * counts).sum())
    return scales[int(torch.stack(errors).argmin())]
