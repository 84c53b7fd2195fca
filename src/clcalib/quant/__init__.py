"""Numbers: the kinds of quantizer, their arithmetic, ranges and rounding, and the modules that hold the result."""

from __future__ import annotations

from clcalib.quant.functional import dequantize, fake_quantize, quantize, round_ste, scale_gradient
from clcalib.quant.packing import pack, unpack
from clcalib.quant.ranges import RANGE_RULES, MinMax, MseGrid, Percentile, RangeRule, is_constant
from clcalib.quant.spec import PerChannel, PerTensor, QParams, QuantSpec

__all__ = [
    "RANGE_RULES",
    "MinMax",
    "MseGrid",
    "PerChannel",
    "PerTensor",
    "Percentile",
    "QParams",
    "QuantSpec",
    "RangeRule",
    "dequantize",
    "fake_quantize",
    "is_constant",
    "pack",
    "quantize",
    "round_ste",
    "scale_gradient",
    "unpack",
]
