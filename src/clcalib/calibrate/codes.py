"""Rows of values on a quantizer's grid as codes: one byte for a value, or half a byte at 4 bits and below."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor
from torch.nn import functional as F

from clcalib.fused import calls
from clcalib.fused.draws import ALL
from clcalib.quant.modules import ActivationQuantizer


@dataclasses.dataclass(frozen=True)
class CodeGrid:
    """value = (stored + offset - zero_point) * scale, in float32.

    Of two codes in one byte, the first is the low nibble; a row of an odd number of codes ends with an unused nibble.

    Attributes:
        scale: s, a float32 number.
        zero_point: z, a float32 number.
        offset: the code that is stored as 0, so that what is stored has no sign.
        bits_stored: of one code, 8 or 4.
    """

    scale: float
    zero_point: float
    offset: int
    bits_stored: int

    @staticmethod
    def of(quantizer: ActivationQuantizer) -> CodeGrid:
        """The grid of a quantizer's output."""
        spec = quantizer.spec
        bits_stored = 4 if spec.bits <= 4 else 8
        return CodeGrid(float(quantizer.scale), float(quantizer.zero_point), spec.q_min, bits_stored)

    def width(self, elements: int) -> int:
        """The bytes of a row."""
        return elements if self.bits_stored == 8 else (elements + 1) // 2

    def encode(self, values: Tensor) -> Tensor | None:
        """Rows of values (B, E) as bytes (B, width), or None where one of them would not come back bit for bit."""
        if values.dtype != torch.float32:
            return None
        origin = self.zero_point - self.offset
        if values.dim() == 2 and calls.can_take(values):
            return calls.encode(values, self.bits_stored, self.scale, origin)
        codes = (values / self.scale).round_().add_(origin).clamp_(0, 2**self.bits_stored - 1)
        packed = codes.nan_to_num_(0.0).to(torch.uint8)
        if self.bits_stored == 4:
            packed = F.pad(packed, (0, packed.shape[1] % 2))
            packed = packed[:, ::2] | (packed[:, 1::2] << 4)
        same = torch.equal(self.decode(packed, values.shape[1]).view(torch.int32), values.view(torch.int32))
        return packed if same else None

    def decode(self, packed: Tensor, elements: int) -> Tensor:
        """The values (B, E) of bytes (B, width)."""
        if packed.device.type == "cpu" and packed.stride(-1) == 1 and len(packed) and calls.is_available():
            codes = self.bits_stored, self.scale, self.offset - self.zero_point
            return calls.gather_mix(packed, None, torch.arange(len(packed)), elements, ALL, torch.float32, codes)
        if self.bits_stored == 4:
            pairs = packed.short()  # both nibbles move to bytes of their own in passes that PyTorch vectorises
            packed = (pairs | (pairs << 4)).bitwise_and_(0x0F0F).view(torch.uint8)[:, :elements]
        return packed.float().sub_(self.zero_point - self.offset).mul_(self.scale)
