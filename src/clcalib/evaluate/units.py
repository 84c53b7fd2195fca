"""Unit by unit: signal to quantization noise, and the bound on the mutual information."""

from __future__ import annotations

import dataclasses
import math

import torch
from torch import Tensor

from clcalib.capture.chain import Chain
from clcalib.capture.running import State, advance
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


def unit_metrics(
    floating: Chain, quantized: Chain, images: Tensor, *, temperature: float = 0.1
) -> tuple[UnitMetrics, ...]:
    """Run both chains side by side over images (K, ...) and compare them behind every unit."""
    # Behind the float chain g(a_F) is one vector for every unit but the last, where the remainder is the identity.
    ends = floating.subgraph((floating.input_name,), (floating.feature_name, floating.output_name))
    features, outputs = (as_vectors(tensor) for tensor in advance(ends, (images,)))
    float_state: State = (images,)
    state: State = (images,)
    rows = []
    for index, unit in enumerate(floating.units):
        float_state = advance(floating.body(index), float_state)
        state = advance(quantized.body(index), state)
        position = unit.outputs.index(unit.target)
        keys = outputs if index == len(floating.units) - 1 else features
        queries = as_vectors(advance(floating.suffix(index, "features"), state)[0])
        bound = feature_bound(queries, keys, temperature)
        rows.append(UnitMetrics(unit.name, sqnr(float_state[position], state[position]), bound))
    return tuple(rows)


def _energy(tensor: Tensor) -> Tensor:
    """The sum of squares; where a device has float64, added up in it."""
    has_double = tensor.device.type != "mps"
    return tensor.square().sum(dtype=torch.float64 if has_double else torch.float32)


def sqnr(signal: Tensor, quantized: Tensor) -> float | None:
    """Signal to quantization noise in decibels; None where it is infinite or undefined."""
    power, noise = float(_energy(signal)), float(_energy(signal - quantized))
    return 10 * math.log10(power / noise) if power > 0 and noise > 0 else None
