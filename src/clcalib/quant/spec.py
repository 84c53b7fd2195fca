"""What a quantizer looks like: the bit width, the signs, how much of a tensor shares a scale; and the numbers it uses.

Uniform affine quantization with b bits: ``q = clamp(round(x / s) + z, q_min, q_max)``, ``x_hat = (q - z) * s``.
A ``QuantSpec`` fixes b, q_min and q_max; ``QParams`` holds s and z.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from clcalib.errors import ArgumentError

MINIMUM_BITS = 2
MAXIMUM_BITS = 8


@dataclass(frozen=True)
class PerTensor:
    """One scale and one zero point for the whole tensor; both have the shape ``()``."""


@dataclass(frozen=True)
class PerChannel:
    """One scale and one zero point for each index of ``axis``; the shape is 1 along every other axis.

    Raises:
        ArgumentError: ``axis`` is not a whole number from 0.
    """

    axis: int = 0

    def __post_init__(self) -> None:
        if type(self.axis) is not int or self.axis < 0:
            raise ArgumentError("axis", "a whole number from 0", repr(self.axis), "count axes from the front")


Granularity = PerTensor | PerChannel
Grid = Literal["uniform", "log2", "log_sqrt2", "twin"]


@dataclass(frozen=True)
class QuantSpec:
    """The kind of a uniform affine quantizer.

    ====================  =======================  ==============
    kind                  codes                    zero point
    ====================  =======================  ==============
    signed symmetric      -2^(b-1) .. 2^(b-1) - 1  0
    signed asymmetric     -2^(b-1) .. 2^(b-1) - 1  any code
    unsigned symmetric    0 .. 2^b - 1             2^(b-1)
    unsigned asymmetric   0 .. 2^b - 1             any code
    ====================  =======================  ==============

    Args:
        bits: the width b of a code, 2 to 8.
        is_symmetric: whether the zero point is fixed to the middle code.
        is_signed: whether the codes start at -2^(b-1) instead of 0.
        granularity: how much of a tensor shares one scale.
        grid: where the values lie (``quant/grids.py``); all but ``"uniform"`` are for activations: per tensor and
            asymmetric, ``"twin"`` signed and the logarithmic ones unsigned.

    Raises:
        ArgumentError: an argument is out of its range or has the wrong type.

    Example:
        >>> spec = QuantSpec(4)
        >>> spec.q_min, spec.q_max, spec.levels
        (0, 15, 16)
    """

    bits: int
    is_symmetric: bool = False
    is_signed: bool = False
    granularity: Granularity = PerTensor()
    grid: Grid = "uniform"

    def __post_init__(self) -> None:
        if type(self.bits) is not int or not MINIMUM_BITS <= self.bits <= MAXIMUM_BITS:
            raise ArgumentError("bits", f"a whole number from {MINIMUM_BITS} to {MAXIMUM_BITS}", repr(self.bits))
        for name in ("is_symmetric", "is_signed"):
            if type(getattr(self, name)) is not bool:
                raise ArgumentError(name, "True or False", repr(getattr(self, name)))
        if not isinstance(self.granularity, PerTensor | PerChannel):
            raise ArgumentError("granularity", "PerTensor() or PerChannel(axis)", repr(self.granularity))
        if self.grid not in get_args(Grid):
            raise ArgumentError("grid", f"one of {', '.join(get_args(Grid))}", repr(self.grid))
        form = (self.is_symmetric, self.is_signed, self.granularity)
        if self.grid != "uniform" and form != (False, self.grid == "twin", PerTensor()):
            raise ArgumentError("grid", "'uniform' for this granularity and these signs", repr(self.grid))

    def on(self, grid: Grid) -> QuantSpec:
        """The same width on another grid, per tensor."""
        return self if grid == self.grid else QuantSpec(self.bits, is_signed=grid == "twin", grid=grid)

    @property
    def q_min(self) -> int:
        """The smallest code."""
        return -(1 << (self.bits - 1)) if self.is_signed else 0

    @property
    def q_max(self) -> int:
        """The largest code."""
        return self.q_min + self.levels - 1

    @property
    def levels(self) -> int:
        """The number of codes, 2^b."""
        return 1 << self.bits

    @property
    def middle(self) -> int:
        """The zero point of a symmetric quantizer: 0 if signed, else 2^(b-1)."""
        return self.q_min + (1 << (self.bits - 1))


@dataclass(frozen=True, eq=False)
class QParams:
    """The numbers of a quantizer, both broadcastable to the tensor that they belong to.

    Args:
        scale: the step s > 0, float32 (another float type only in gradient checks)
            # shape: () or, for axis 0 of four, (C, 1, 1, 1)
        zero_point: the code z of the value 0, integer-valued, of the shape and type of ``scale``.

    Raises:
        ArgumentError: the two differ in shape, or one of them is not a float tensor.
    """

    scale: Tensor
    zero_point: Tensor

    def __post_init__(self) -> None:
        for name in ("scale", "zero_point"):
            value = getattr(self, name)
            if not isinstance(value, Tensor) or not torch.is_floating_point(value):
                got = value.dtype if isinstance(value, Tensor) else type(value).__name__
                raise ArgumentError(name, "a float tensor", got)
        if self.scale.shape != self.zero_point.shape:
            raise ArgumentError(
                "zero_point", f"the shape of scale, {tuple(self.scale.shape)}", tuple(self.zero_point.shape)
            )
