"""A graph being written: operators, constants and unique names as plain values; it needs no ONNX package yet."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx

from clcalib.export.onnx.rules import OnnxRules
from clcalib.quant.modules import ActivationQuantizer


class UnsupportedError(Exception):
    """An operator, or the way it is used, that the emitter cannot write; the text says what."""


@dataclass(frozen=True)
class Step:
    """One ONNX operator."""

    operator: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    name: str
    attributes: Mapping[str, Any]


@dataclass(frozen=True)
class Constant:
    """An initializer; codes of fewer than 8 bits are packed by ``bits`` when the file is written."""

    name: str
    value: Tensor
    bits: int | None = None


@dataclass(frozen=True)
class Codes:
    """Where the integer codes of a tensor are, and what they mean.

    Attributes:
        name: tensor of the codes.
        numbers: constants with their scale and zero point.
        quantizer: that made them.
    """

    name: str
    numbers: tuple[str, str]
    quantizer: ActivationQuantizer


@dataclass
class Writer:
    """Steps and constants in the order in which they were written.

    Attributes:
        module: the captured graph that is written; parameters and quantizers are read off it.
        rules: how the graph shall look.
        layer_names: name of a weight's module -> its layer, where that is known.
        products: node of a product of activations -> the product's name.
        steps: the operators, in execution order.
        constants: by name.
        codes: quantizer -> tensor with its integer codes.
        stored: float value -> the codes that it is dequantized from.
        flattened: value behind a pool over all pixels, without the pixels' axes -> the pool's value.
        reference_codes: quantizer written in float operators -> tensor with its codes as floats.
        layers: layer or product -> name of its step.
        least_scales: name of a weight's module -> the scales from which on its layer's bias fits into an integer, where
            the weight's own are smaller.
        biases: node of a layer -> the values of the bias that the graph adds, where they are rounded.
        weights: name of a weight's module -> its float value, for layers that are called again.
        narrow: initializer of a weight's codes -> "3 bits in int4", where the type is wider than the codes.
    """

    module: fx.GraphModule
    rules: OnnxRules
    layer_names: Mapping[str, str] = field(default_factory=dict)
    products: Mapping[str, str] = field(default_factory=dict)
    steps: list[Step] = field(default_factory=list)
    constants: dict[str, Constant] = field(default_factory=dict)
    codes: dict[str, str] = field(default_factory=dict)
    stored: dict[str, Codes] = field(default_factory=dict)
    flattened: dict[str, str] = field(default_factory=dict)
    reference_codes: dict[str, str] = field(default_factory=dict)
    layers: dict[str, str] = field(default_factory=dict)
    least_scales: dict[str, Tensor] = field(default_factory=dict)
    biases: dict[str, Tensor] = field(default_factory=dict)
    weights: dict[str, str] = field(default_factory=dict)
    narrow: dict[str, str] = field(default_factory=dict)
    _values: set[str] = field(default_factory=set)
    _step_names: set[str] = field(default_factory=set)

    def reserve(self, wanted: str) -> str:
        """A name for a value that nothing else has: ``wanted`` itself, or with a number behind it."""
        return _unique(wanted, self._values)

    def constant(self, wanted: str, value: Tensor, bits: int | None = None) -> str:
        """Add an initializer; of the same name and the same values, one is enough."""
        value = value.detach().cpu().contiguous()
        known = self.constants.get(wanted)
        if known is not None and known.bits == bits and _is_same(known.value, value):
            return wanted
        name = self.reserve(wanted)
        self.constants[name] = Constant(name, value, bits)
        return name

    def step(self, operator: str, inputs: Sequence[str], outputs: Sequence[str], name: str, **attributes: Any) -> str:
        """Add an operator whose outputs have names already; returns the name that the step got, which may be none."""
        name = _unique(name, self._step_names) if name else ""
        while outputs and not outputs[-1]:
            outputs = outputs[:-1]
        while inputs and not inputs[-1]:
            inputs = inputs[:-1]
        self.steps.append(Step(operator, tuple(inputs), tuple(outputs), name, attributes))
        return name

    def needed(self, outputs: Sequence[str]) -> list[Step]:
        """The steps that some output needs, in execution order; sizes that became plain numbers leave some unread."""
        wanted, found = set(outputs), []
        for step in reversed(self.steps):
            if wanted.intersection(step.outputs):
                found.append(step)
                wanted.update(step.inputs)
        return found[::-1]


def _unique(wanted: str, taken: set[str]) -> str:
    name, count = wanted, 1
    while name in taken:
        count += 1
        name = f"{wanted}#{count}"
    taken.add(name)
    return name


def _is_same(left: Tensor, right: Tensor) -> bool:
    return left.dtype == right.dtype and left.shape == right.shape and bool(torch.equal(left, right))
