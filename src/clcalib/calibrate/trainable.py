"""Stand-ins for quantizers while a unit is optimised; when it is done, each becomes a plain module of ``quant``."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from clcalib.calibrate.streams import StepStream
from clcalib.quant.kernels import NO_LIMITS, activation, soft_round
from clcalib.quant.modules import ActivationQuantizer, IntegerWeight
from clcalib.quant.rounding import floor_codes, harden, initial_v
from clcalib.quant.spec import QParams


class SoftWeight(nn.Module):
    """A weight under soft rounding: s * (clamp(floor(w / s) + h(v) + z, q_min, q_max) - z), v trained.

    ``dtype`` is that of the weight that comes out; a 4-D weight lies in memory channels last.
    """

    floor_codes: Tensor

    def __init__(self, weight: Tensor, quantizer: IntegerWeight) -> None:
        super().__init__()
        self.spec = quantizer.spec
        self.dtype = torch.float32
        self.weight = weight
        self.parameters_of_range = QParams(quantizer.scale, quantizer.zero_point)
        self.floor_codes = channels_last(floor_codes(weight, self.parameters_of_range))
        self.v = nn.Parameter(channels_last(initial_v(weight, self.parameters_of_range)))

    def forward(self) -> Tensor:
        scale, zero_point = self.parameters_of_range.scale, self.parameters_of_range.zero_point
        bounds = self.spec.q_min, self.spec.q_max
        return soft_round(self.floor_codes, self.v, scale, zero_point, *bounds, dtype=self.dtype)

    def hardened(self) -> IntegerWeight:
        """The finished quantizer: up where h(v) is at least one half."""
        codes = harden(self.weight, self.v.detach(), self.parameters_of_range, self.spec)
        return IntegerWeight(codes, self.parameters_of_range, self.spec)


class TrainableActivation(nn.Module):
    """An activation quantizer whose scale may be trained and whose elements may stay float at random (QDrop).

    What comes before it in the unit can be taken in: ``limits`` of an activation function, a tensor to add first.
    """

    zero_point: Tensor

    def __init__(
        self,
        quantizer: ActivationQuantizer,
        random: StepStream,
        *,
        keep_quantized_probability: float,
        is_trained: bool,
        has_scale_gradient_factor: bool,
    ) -> None:
        super().__init__()
        self.spec = quantizer.spec
        self.limits = NO_LIMITS
        self.dtype: torch.dtype | None = None
        self.scale = nn.Parameter(quantizer.scale.clone(), requires_grad=is_trained)
        self.zero_point = quantizer.zero_point
        self._random = random
        self._keep = keep_quantized_probability
        self._has_factor = has_scale_gradient_factor and is_trained

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        factor = 1.0 / math.sqrt(x.numel() * max(self.spec.q_max, 1)) if self._has_factor else 1.0
        return activation(
            x,
            self.scale,
            self.zero_point,
            self.spec.q_min,
            self.spec.q_max,
            residual=residual,
            limits=self.limits,
            draw=self._random.draw(self._keep),
            gradient_factor=factor,
            dtype=self.dtype,
        )

    def finished(self) -> ActivationQuantizer:
        """The plain quantizer with the trained scale, kept positive."""
        scale = self.scale.detach().abs().clamp(min=torch.finfo(torch.float32).tiny)
        return ActivationQuantizer(QParams(scale, self.zero_point), self.spec)


def channels_last(tensor: Tensor) -> Tensor:
    """The tensor with its channels last in memory, if it has four dimensions: convolutions are fastest that way."""
    return tensor.contiguous(memory_format=torch.channels_last) if tensor.ndim == 4 else tensor.contiguous()
