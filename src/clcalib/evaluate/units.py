"""Unit by unit: signal to quantization noise, and the bound on the mutual information."""

from __future__ import annotations

import dataclasses
import math

import torch
from torch import Tensor, nn

from clcalib.capture.chain import Chain
from clcalib.capture.running import State, advance, images_at_once
from clcalib.evaluate.mutual_information import feature_bound
from clcalib.objectives.keys import as_vectors


@dataclasses.dataclass(frozen=True)
class UnitMetrics:
    """Attributes:
    sqnr_db: 10 log10(|a_F|^2 / |a_F - a_Q|^2) of the unit's output, the whole prefix quantized, in decibels;
        None where both agree exactly or the float output is zero.
    mutual_information_bound: of g(a_F) and g(a_Q) at the penultimate feature, in nats.
    """

    name: str
    sqnr_db: float | None
    mutual_information_bound: float


@torch.no_grad()
def unit_metrics(
    floating: Chain, quantized: Chain, images: Tensor, *, temperature: float = 0.1
) -> tuple[UnitMetrics, ...]:
    """Run both chains side by side over images (K, ...), batch by batch, and compare them behind every unit."""
    # Behind the float chain g(a_F) is one vector for every unit but the last, where the remainder is the identity.
    ends = floating.subgraph((floating.input_name,), (floating.feature_name, floating.output_name))
    features, outputs = advance(ends, (images,), as_vectors)
    columns = [_Column.of(floating, quantized, index) for index in range(len(floating.units))]
    size = min(images_at_once(piece) for column in columns for piece in (column.floating, column.quantized))
    for start in range(0, len(images), size):
        float_state: State = (images[start : start + size],)
        state = float_state
        for column in columns:
            float_state, state = column.floating(*float_state), column.quantized(*state)
            column.see(float_state, state)
    keys = [features] * (len(columns) - 1) + [outputs]
    return tuple(column.metrics(own, temperature) for column, own in zip(columns, keys, strict=True))


@dataclasses.dataclass
class _Column:
    """One unit, and what is summed up of it."""

    name: str
    position: int  # of its target among its outputs
    floating: nn.Module
    quantized: nn.Module
    rest: nn.Module  # the unit's outputs -> the penultimate feature, in float
    queries: list[Tensor] = dataclasses.field(default_factory=list)
    power: float = 0.0
    noise: float = 0.0

    @classmethod
    def of(cls, floating: Chain, quantized: Chain, index: int) -> _Column:
        unit = floating.units[index]
        position = unit.outputs.index(unit.target)
        bodies = floating.body(index), quantized.body(index)
        return cls(unit.name, position, *bodies, floating.suffix(index, "features"))

    def see(self, floats: State, quantized: State) -> None:
        signal, other = floats[self.position], quantized[self.position]
        self.power += float(_energy(signal))
        self.noise += float(_energy(signal - other))
        self.queries.append(as_vectors(self.rest(*quantized)[0]))

    def metrics(self, keys: Tensor, temperature: float) -> UnitMetrics:
        bound = feature_bound(torch.cat(self.queries), keys, temperature)
        return UnitMetrics(self.name, _decibels(self.power, self.noise), bound)


def _energy(tensor: Tensor) -> Tensor:
    """The sum of squares; where a device has float64, added up in it."""
    has_double = tensor.device.type != "mps"
    return tensor.square().sum(dtype=torch.float64 if has_double else torch.float32)


def sqnr(signal: Tensor, quantized: Tensor) -> float | None:
    """Signal to quantization noise in decibels; None where it is infinite or undefined."""
    return _decibels(float(_energy(signal)), float(_energy(signal - quantized)))


def _decibels(power: float, noise: float) -> float | None:
    return 10 * math.log10(power / noise) if power > 0 and noise > 0 else None
