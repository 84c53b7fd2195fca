"""Histograms of what is rounded: float weights on their channels' grids, activations as their quantizers get them."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor, fx, nn

from clcalib.capture.running import advance
from clcalib.quant.insert import QuantizedChain
from clcalib.quant.modules import ActivationQuantizer, IntegerWeight
from clcalib.quant.rounding import nearest
from clcalib.quant.spec import QParams
from clcalib.report.evidence import HistogramRecord, rounded

BINS = 96
_MARGIN = 0.15  # of the grid's width, shown on either side of an activation's grid
_BEYOND = 1.5  # steps that are shown beyond the first and last code of a weight
_PER_OCTAVE = {"log2": 1, "log_sqrt2": 2}  # levels between s and s / 2


def weight_histogram(weight: Tensor, quantizer: IntegerWeight) -> HistogramRecord:
    """The float weight in units of its channels' scales, w / s + z, where the grid is the codes.

    Args:
        weight: of the float layer  # shape: that of the quantizer's codes
        quantizer: the finished one.
    """
    spec = quantizer.spec
    places = (weight / quantizer.scale + quantizer.zero_point).flatten()
    counter = _Counter.between(spec.q_min - _BEYOND, spec.q_max + _BEYOND)
    counter.add(places, spec.q_min - 0.5, spec.q_max + 0.5)
    levels = tuple(float(code) for code in range(spec.q_min, spec.q_max + 1))
    return counter.record("codes", spec.bits, levels)


def flipped_share(weight: Tensor, quantizer: IntegerWeight) -> float:
    """The share of the weights whose code is not that of the nearest level of the finished grid."""
    codes = nearest(weight, QParams(quantizer.scale, quantizer.zero_point), quantizer.spec)
    return int((codes != quantizer.codes).sum()) / max(1, codes.numel())


def activation_histograms(quantized: QuantizedChain, images: Tensor) -> dict[str, HistogramRecord]:
    """By the name of its layer, what each activation quantizer gets while the quantized network sees images.

    Args:
        quantized: a finished chain.
        images: (N, ...) on its device.
    """
    module = quantized.chain.module
    seen: dict[str, _Watched] = {}
    handles = []
    for layer, name in quantized.activations.items():
        quantizer = module.get_submodule(name)
        if isinstance(quantizer, ActivationQuantizer):
            seen[layer] = _Watched.of(quantizer)
            handles.append(quantizer.register_forward_pre_hook(seen[layer].see))
    try:
        advance(_returning_tuple(quantized), (images,))
    finally:
        for handle in handles:
            handle.remove()
    return {layer: watched.record() for layer, watched in seen.items() if watched.counter.total}


def levels_of(quantizer: ActivationQuantizer) -> tuple[float, ...]:
    """The values that a quantizer can give, rising."""
    spec, scale = quantizer.spec, quantizer.scale.cpu().double()
    codes = torch.arange(spec.q_min, spec.q_max + 1, dtype=torch.float64)
    if spec.grid == "uniform":
        values = (codes - quantizer.zero_point.cpu().double()) * scale
    elif spec.grid == "twin":
        values = torch.where(codes < 0, codes * scale[0], codes * scale[1])
    else:  # the last code is 0
        values = torch.cat((scale * torch.exp2(-codes[:-1] / _PER_OCTAVE[spec.grid]), torch.zeros(1)))
    return tuple(dict.fromkeys(rounded(value, 7) for value in values.sort().values.tolist()))


@dataclasses.dataclass
class _Counter:
    """Counts in equal bins, added up from part to part."""

    low: float
    high: float
    counts: Tensor
    below: int = 0
    above: int = 0
    outside: int = 0
    total: int = 0

    @classmethod
    def between(cls, low: float, high: float) -> _Counter:
        return cls(low, high, torch.zeros(BINS, dtype=torch.int64))

    def add(self, values: Tensor, first: float, last: float) -> None:
        """Count values (N,); those below ``first`` or above ``last`` are outside of the grid."""
        values = values.detach().float().cpu()  # elsewhere torch may add up counts in any order, or refuse to
        self.counts += torch.histc(values, BINS, self.low, self.high).long()
        self.below += int((values < self.low).sum())
        self.above += int((values > self.high).sum())
        self.outside += int(((values < first) | (values > last)).sum())
        self.total += values.numel()

    def record(self, axis: str, bits: int, levels: tuple[float, ...]) -> HistogramRecord:
        values = {
            "axis": axis, "low": rounded(self.low), "high": rounded(self.high), "counts": tuple(self.counts.tolist()),
            "below": self.below, "above": self.above, "clipped": rounded(self.outside / max(1, self.total)),
            "bits": bits, "levels": levels,
        }  # fmt: skip
        return HistogramRecord.model_validate(values)


@dataclasses.dataclass
class _Watched:
    """One activation quantizer, and what came to it."""

    bits: int
    levels: tuple[float, ...]
    counter: _Counter
    first: float
    last: float

    @classmethod
    def of(cls, quantizer: ActivationQuantizer) -> _Watched:
        levels = levels_of(quantizer)
        ends = levels[0], levels[-1]
        width = (ends[1] - ends[0]) or abs(ends[0]) or 1.0
        first_step, last_step = (levels[1] - levels[0], levels[-1] - levels[-2]) if len(levels) > 1 else (width, width)
        counter = _Counter.between(ends[0] - _MARGIN * width, ends[1] + _MARGIN * width)
        return cls(quantizer.spec.bits, levels, counter, ends[0] - first_step / 2, ends[1] + last_step / 2)

    def see(self, _: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        self.counter.add(inputs[0].flatten(), self.first, self.last)

    def record(self) -> HistogramRecord:
        return self.counter.record("values", self.bits, self.levels)


def _returning_tuple(quantized: QuantizedChain) -> fx.GraphModule:
    chain = quantized.chain
    return chain.subgraph((chain.input_name,), (chain.output_name,))
