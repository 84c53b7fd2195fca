"""Stand-ins for quantizers while a unit is optimised; when it is done, each becomes a plain module of ``quant``."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from clcalib.calibrate.mixing import keep_mask_like
from clcalib.calibrate.streams import StepStream
from clcalib.quant.functional import scale_gradient
from clcalib.quant.kernels import (
    fake_quantize_blend_fused,
    fake_quantize_fused,
    soft_round_fused,
)
from clcalib.quant.modules import ActivationQuantizer, IntegerWeight
from clcalib.quant.rounding import floor_codes, harden, initial_v, rectified_sigmoid
from clcalib.quant.spec import QParams


class SoftWeight(nn.Module):
    """A weight under soft rounding: s * (clamp(floor(w / s) + h(v) + z, q_min, q_max) - z), v trained."""

    floor_codes: Tensor

    def __init__(self, weight: Tensor, quantizer: IntegerWeight) -> None:
        super().__init__()
        self.spec = quantizer.spec
        self.weight = weight
        self.parameters_of_range = QParams(quantizer.scale, quantizer.zero_point)
        self.floor_codes = floor_codes(weight, self.parameters_of_range)
        self.v = nn.Parameter(initial_v(weight, self.parameters_of_range))

    def forward(self) -> Tensor:
        scale, zero_point = self.parameters_of_range.scale, self.parameters_of_range.zero_point
        return soft_round_fused(self.floor_codes, self.v, scale, zero_point, self.spec.q_min, self.spec.q_max)

    def rounding(self) -> Tensor:
        """h(v), the share of the way up to the next integer."""
        return rectified_sigmoid(self.v)

    def hardened(self) -> IntegerWeight:
        """The finished quantizer: up where h(v) is at least one half."""
        codes = harden(self.weight, self.v.detach(), self.parameters_of_range, self.spec)
        return IntegerWeight(codes, self.parameters_of_range, self.spec)


class TrainableActivation(nn.Module):
    """An activation quantizer whose scale may be trained and whose elements may stay float at random (QDrop)."""

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
        self.scale = nn.Parameter(quantizer.scale.clone(), requires_grad=is_trained)
        self.zero_point = quantizer.zero_point
        self._random = random
        self._keep = keep_quantized_probability
        self._has_factor = has_scale_gradient_factor and is_trained

    def forward(self, x: Tensor) -> Tensor:
        scale: Tensor = self.scale
        if self._has_factor:
            scale = scale_gradient(scale, 1.0 / math.sqrt(x.numel() * max(self.spec.q_max, 1)))
        if self._keep >= 1:
            return fake_quantize_fused(x, scale, self.zero_point, self.spec.q_min, self.spec.q_max)
        keep = keep_mask_like(x, self._keep, self._random.generator)
        return fake_quantize_blend_fused(x, scale, self.zero_point, self.spec.q_min, self.spec.q_max, keep)

    def finished(self) -> ActivationQuantizer:
        """The plain quantizer with the trained scale, kept positive."""
        scale = self.scale.detach().abs().clamp(min=torch.finfo(torch.float32).tiny)
        return ActivationQuantizer(QParams(scale, self.zero_point), self.spec)
