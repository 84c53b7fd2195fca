"""Stand-ins for quantizers while a unit is optimised; when it is done, each becomes a plain module of ``quant``."""

from __future__ import annotations

import abc
import math

import torch
from torch import Tensor, nn

from clcalib.calibrate.streams import StepStream
from clcalib.fused.draws import keep_mask
from clcalib.quant.functional import scale_gradient
from clcalib.quant.grids import GRIDS
from clcalib.quant.kernels import NO_LIMITS, activation, soft_round
from clcalib.quant.modules import ActivationQuantizer, Bias, IntegerWeight
from clcalib.quant.rounding import floor_codes, harden, initial_v, offset_codes, offset_quantize
from clcalib.quant.spec import QParams

LEAST_FACTOR = 1 / 64  # on its first value, which a trained weight scale does not fall below, so that it stays positive


class TrainableWeight(nn.Module, abc.ABC):
    """What all weights under training share: the float weight, the range, and the two things that may be trained.

    Attributes:
        weight: the float weight that the rounding starts from.
        dtype: of the weight that comes out; a 4-D weight lies in memory channels last.
        initial_range: scale s_0 and zero point z.
        scale_factor: s / s_0 where the scale is trained, else None.  As a factor, one rate fits scales of all sizes.
    """

    def __init__(self, weight: Tensor, quantizer: IntegerWeight, *, is_scale_trained: bool) -> None:
        super().__init__()
        self.spec = quantizer.spec
        self.dtype = torch.float32
        self.weight = weight
        self.initial_range = QParams(quantizer.scale, quantizer.zero_point)
        self.scale_factor = nn.Parameter(torch.ones_like(quantizer.scale)) if is_scale_trained else None

    @property
    @abc.abstractmethod
    def rounding(self) -> nn.Parameter | None:
        """What is trained at the phase's ``rounding_rate``; None where the codes stay."""

    @abc.abstractmethod
    def hardened(self) -> IntegerWeight:
        """The finished quantizer."""

    def present_range(self) -> QParams:
        """The present scale, kept positive, and the zero point."""
        if self.scale_factor is None:
            return self.initial_range
        scale = self.initial_range.scale * self.scale_factor.clamp(min=LEAST_FACTOR)
        return QParams(scale, self.initial_range.zero_point)

    def final_range(self) -> QParams:
        """The range without a gradient."""
        found = self.present_range()
        return QParams(found.scale.detach(), found.zero_point)


class SoftWeight(TrainableWeight):
    """A weight under soft rounding: s * (clamp(B + h(v) + z, q_min, q_max) - z), v trained, s too where asked.

    B = floor(w / s) comes from the scale at the start and stays, so that a trained scale moves the weight and no code.
    """

    floor_codes: Tensor

    def __init__(self, weight: Tensor, quantizer: IntegerWeight, *, is_scale_trained: bool = False) -> None:
        super().__init__(weight, quantizer, is_scale_trained=is_scale_trained)
        self.floor_codes = channels_last(floor_codes(weight, self.initial_range))
        self.v = nn.Parameter(channels_last(initial_v(weight, self.initial_range)))

    @property
    def rounding(self) -> nn.Parameter:
        """The rounding variable v."""
        return self.v

    def forward(self) -> Tensor:
        found, bounds = self.present_range(), (self.spec.q_min, self.spec.q_max)
        return soft_round(self.floor_codes, self.v, found.scale, found.zero_point, *bounds, dtype=self.dtype)

    def hardened(self) -> IntegerWeight:
        """The finished quantizer: up where h(v) is at least one half."""
        codes = harden(self.weight, self.v.detach(), self.initial_range, self.spec)
        return IntegerWeight(codes, self.final_range(), self.spec)


class StraightThroughWeight(TrainableWeight):
    """A weight that is rounded at each step: s * (clamp(round(w / s + d) + z, q_min, q_max) - z), d and s trained.

    What is trained is the offset d and not w: in steps of the grid one rate fits all layers, as for v.
    """

    def __init__(self, weight: Tensor, quantizer: IntegerWeight, *, is_scale_trained: bool = True) -> None:
        super().__init__(channels_last(weight), quantizer, is_scale_trained=is_scale_trained)
        self.offset = nn.Parameter(torch.zeros_like(self.weight))

    @property
    def rounding(self) -> nn.Parameter:
        """The offset d."""
        return self.offset

    def forward(self) -> Tensor:
        return offset_quantize(self.weight, self.offset, self.present_range(), self.spec).to(self.dtype)

    def hardened(self) -> IntegerWeight:
        """The finished quantizer, with the codes that a forward pass has now."""
        found = self.final_range()
        codes = offset_codes(self.weight, self.offset, found, self.spec).contiguous()
        return IntegerWeight(codes, found, self.spec)


class FixedWeight(TrainableWeight):
    """A weight whose codes stay, with its scale trained: s_0 f (q - z), f trained from 1."""

    offset_codes: Tensor

    def __init__(self, weight: Tensor, quantizer: IntegerWeight, *, is_scale_trained: bool = True) -> None:
        super().__init__(channels_last(weight), quantizer, is_scale_trained=is_scale_trained)
        self.codes = quantizer.codes
        offsets = quantizer.codes.to(quantizer.scale.dtype) - quantizer.zero_point
        self.register_buffer("offset_codes", channels_last(offsets))

    @property
    def rounding(self) -> None:
        """Nothing: the codes stay."""

    def forward(self) -> Tensor:
        return (self.offset_codes * self.present_range().scale).to(self.dtype)

    def hardened(self) -> IntegerWeight:
        """The finished quantizer, with the same codes."""
        return IntegerWeight(self.codes, self.final_range(), self.spec)


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
        self.share = 1.0  # of a step's images, those that a pass sees
        self.scale = nn.Parameter(quantizer.scale.clone(), requires_grad=is_trained)
        self.zero_point = quantizer.zero_point
        self._random = random
        self._keep = keep_quantized_probability
        self._has_factor = has_scale_gradient_factor and is_trained

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        factor = 1.0 / math.sqrt(x.numel() / self.share * max(self.spec.q_max, 1)) if self._has_factor else 1.0
        if self.spec.grid != "uniform":
            return self._on_grid(x, factor).to(self.dtype or x.dtype)
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

    def _on_grid(self, x: Tensor, factor: float) -> Tensor:
        """The plain passes of a grid without a kernel; nothing was taken in there (``fuse``)."""
        spec, draw = self.spec, self._random.draw(self._keep)
        scale = scale_gradient(self.scale, factor)
        quantized = GRIDS[spec.grid](x, scale, self.zero_point, spec.q_min, spec.q_max)
        return torch.where(keep_mask(x.shape, draw, x.device) > 0, quantized, x)

    def finished(self) -> ActivationQuantizer:
        """The plain quantizer with the trained scale, kept positive."""
        scale = self.scale.detach().abs().clamp(min=torch.finfo(torch.float32).tiny)
        return ActivationQuantizer(QParams(scale, self.zero_point), self.spec)


class TrainableBias(nn.Module):
    """A bias under training: b + n * o, with o trained and n the norm of each output channel's weight.

    n ||x|| is the size of the layer's output, so that one rate for o fits all layers.

    Attributes:
        target: the path of the bias in the network.
    """

    value: Tensor
    norm: Tensor

    def __init__(self, bias: Tensor, weight: Tensor, target: str) -> None:
        super().__init__()
        self.target = target
        self.register_buffer("value", bias.detach().clone())
        self.register_buffer("norm", weight.detach().flatten(1).norm(dim=1))
        self.offset = nn.Parameter(torch.zeros_like(bias))

    def forward(self) -> Tensor:
        return torch.addcmul(self.value, self.norm, self.offset)

    def finished(self) -> Bias:
        """The bias as it is now."""
        return Bias(self())


def channels_last(tensor: Tensor) -> Tensor:
    """The tensor with its channels last in memory, if it has four dimensions: convolutions are fastest that way."""
    return tensor.contiguous(memory_format=torch.channels_last) if tensor.ndim == 4 else tensor.contiguous()
