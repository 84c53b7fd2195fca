"""The modules that hold the numbers of a finished network.  None has a mode: what differs is a class of its own."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from clcalib.quant.functional import dequantize
from clcalib.quant.grids import GRIDS
from clcalib.quant.spec import QParams, QuantSpec


class IntegerWeight(nn.Module):
    """A weight stored as integers; calling it gives s * (q - z) in float32.

    Buffers: ``codes`` (int16, the weight's shape), ``scale`` and ``zero_point`` (broadcastable to it).
    """

    codes: Tensor
    scale: Tensor
    zero_point: Tensor

    def __init__(self, codes: Tensor, parameters: QParams, spec: QuantSpec) -> None:
        super().__init__()
        self.spec = spec
        # In one order in memory, as a saved weight comes back: a convolution may add up in the order that it finds.
        self.register_buffer("codes", codes.to(torch.int16).contiguous())
        self.register_buffer("scale", parameters.scale.clone())
        self.register_buffer("zero_point", parameters.zero_point.clone())

    def forward(self) -> Tensor:
        return dequantize(self.codes.to(self.scale.dtype), self.scale, self.zero_point)


class Bias(nn.Module):
    """A layer's bias as it was at some time; it stands in no graph.  ``QuantizedChain.replace`` puts it back."""

    value: Tensor

    def __init__(self, value: Tensor) -> None:
        super().__init__()
        self.register_buffer("value", value.detach().clone())


class ActivationQuantizer(nn.Module):
    """x -> s * (clamp(round(x / s) + z, q_min, q_max) - z), one scale for the tensor; or another of ``GRIDS``."""

    scale: Tensor
    zero_point: Tensor

    def __init__(self, parameters: QParams, spec: QuantSpec) -> None:
        super().__init__()
        self.spec = spec
        self.register_buffer("scale", parameters.scale.clone())
        self.register_buffer("zero_point", parameters.zero_point.clone())

    def forward(self, x: Tensor) -> Tensor:
        return GRIDS[self.spec.grid](x, self.scale, self.zero_point, self.spec.q_min, self.spec.q_max)
