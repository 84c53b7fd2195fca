"""Visits the units in order: finds ranges, optimises, hardens, and moves the caches one unit forward."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Iterator, Mapping
from typing import Literal

import torch
from torch import Tensor, fx, nn

from clcalib.calibrate.caches import dead_activation_warning, find_ranges, take
from clcalib.calibrate.compensation import compensated
from clcalib.calibrate.loop import UnitData, optimise
from clcalib.calibrate.observer import Observer
from clcalib.calibrate.recipe import Phase, Recipe
from clcalib.calibrate.streams import StepStream
from clcalib.calibrate.trainable import SoftWeight, TrainableActivation
from clcalib.capture.chain import Chain
from clcalib.capture.running import State, advance
from clcalib.capture.units import Unit
from clcalib.errors import NumericalError
from clcalib.objectives.batch import Need
from clcalib.objectives.keys import KeySet
from clcalib.objectives.lp import lp_error
from clcalib.quant.insert import QuantizedChain, tensor_at
from clcalib.quant.modules import ActivationQuantizer, IntegerWeight
from clcalib.quant.ranges import RangeRule

RANGE_IMAGES = 256  # images that an activation's range is found from
HESSIAN_IMAGES = 256  # images that error feedback sees
PROBE_IMAGES = 256  # images that errors and relative weights are measured on


@dataclasses.dataclass(frozen=True)
class UnitTrace:
    """What happened to one unit: reconstruction error before (nearest rounding) and after, on both image sets."""

    name: str
    kind: Literal["layer", "block"]
    layers: tuple[str, ...]
    error_before: float
    error_after: float
    held_out_error_before: float | None
    held_out_error_after: float | None


@dataclasses.dataclass(frozen=True)
class Walk:
    """One run over the chain.

    Args:
        floating: the float chain.
        quantized: its quantized copy; this is what changes.
        recipe: what to do with each unit.
        activation_rule: chooses ranges of activations.
        keys: the static float keys, by need.
        seed: of all random streams.
        observer: who is told.
    """

    floating: Chain
    quantized: QuantizedChain
    recipe: Recipe
    activation_rule: RangeRule
    keys: Mapping[Need, KeySet]
    seed: int
    observer: Observer

    def run(self, images: Tensor, held_out: Tensor | None) -> Iterator[UnitTrace]:
        """Visit every unit; yield its trace as soon as it is finished.

        Args:
            images: calibration images (N, ...), on the device of the chains.
            held_out: other images, only measured on.
        """
        calibration = _Pair((images,), (images,))
        other = None if held_out is None else _Pair((held_out,), (held_out,))
        for index in range(len(self.floating.units)):
            trace, calibration, other = self._visit(index, calibration, other)
            yield trace

    def _visit(self, index: int, pair: _Pair, other: _Pair | None) -> tuple[UnitTrace, _Pair, _Pair | None]:
        unit = self.floating.units[index]
        is_skipped = self.recipe.skips_first_unit and index == 0
        phases = () if is_skipped else self.recipe.phases
        steps = sum(phase.steps for phase in phases)
        self.observer.unit_started(index, len(self.floating.units), unit.name, unit.kind, steps)
        float_body = self.floating.body(index)
        float_outputs = advance(float_body, pair.floating)
        other_outputs = None if other is None else advance(float_body, other.floating)
        position = unit.outputs.index(unit.target)
        self._find_ranges(index, pair.quantized)
        before = self._error(index, pair.quantized, float_outputs)
        other_before = None
        if other is not None and other_outputs is not None:
            other_before = self._error(index, other.quantized, other_outputs)
        if self.recipe.start == "error_feedback" and not is_skipped:
            self._feed_back(index, pair.quantized)
        if phases:
            self._optimise(index, phases, pair, float_outputs, position)
        body = self.quantized.chain.body(index)
        _check_finite(body, unit.name)
        next_pair = _Pair(advance(body, pair.quantized), float_outputs)
        after = _probe_error(unit, next_pair.quantized, float_outputs)
        next_other, other_after = None, None
        if other is not None and other_outputs is not None:
            next_other = _Pair(advance(body, other.quantized), other_outputs)
            other_after = _probe_error(unit, next_other.quantized, other_outputs)
        self.observer.unit_finished(index, unit.name, before, after)
        trace = UnitTrace(unit.name, unit.kind, unit.layers, before, after, other_before, other_after)
        return trace, next_pair, next_other

    def _find_ranges(self, index: int, state: State) -> None:
        found, dead = find_ranges(self.quantized.chain.body(index), take(state, RANGE_IMAGES), self.activation_rule)
        if dead:
            warnings.warn(dead_activation_warning(self.floating.units[index].name, dead), stacklevel=2)
        for name, quantizer in found.items():
            self.quantized.replace(name, quantizer)

    def _feed_back(self, index: int, state: State) -> None:
        body = self.quantized.chain.body(index)
        weights = {name: self._float_weight(layer) for name, layer in self._open_layers(index, body).items()}
        for name, quantizer in compensated(body, weights, take(state, HESSIAN_IMAGES)).items():
            self.quantized.replace(name, quantizer)

    def _error(self, index: int, state: State, targets: State) -> float:
        outputs = advance(self.quantized.chain.body(index), take(state, PROBE_IMAGES))
        return _probe_error(self.floating.units[index], outputs, targets)

    def _optimise(
        self, index: int, phases: tuple[Phase, ...], pair: _Pair, float_outputs: State, position: int
    ) -> None:
        needs = self.recipe.needs
        reads: dict[Need, fx.GraphModule] = {}
        if Need.FEATURES in needs:
            reads[Need.FEATURES] = self.floating.suffix(index, "features")
        if Need.LOGITS in needs:
            reads[Need.LOGITS] = self.floating.suffix(index, "logits")
        data = UnitData(
            quantized=pair.quantized,
            floating=pair.floating,
            target=float_outputs[position],
            target_position=position,
            reads=reads,
            keys={need: self._keys_behind(index, need) for need in reads},
            float_gradient=self._float_gradient(index, pair, float_outputs) if Need.FLOAT_GRADIENT in needs else None,
            channel_axis=self.floating.units[index].channel_axis,
        )
        done = 0
        for number, phase in enumerate(phases):
            self._run_phase(index, number, phase, data, done)
            done += phase.steps

    def _run_phase(self, index: int, number: int, phase: Phase, data: UnitData, done: int) -> None:
        random = StepStream(self.seed, index, number, data.target.device)
        body = self.quantized.chain.body(index)
        hardened = _with_float_activations(body) if phase.activations == "float" else body
        scales = _scales(phase, hardened, data)
        working = self._working_body(index, phase, random)

        def report(step: int, losses: Mapping[str, float]) -> None:
            self.observer.step(done + step, losses)

        optimise(working, data, phase, random, scales=scales, report=report)
        for name, module in working.named_modules():
            if isinstance(module, SoftWeight):
                self.quantized.replace(name, module.hardened())
            elif isinstance(module, TrainableActivation) and module.scale.requires_grad:
                self.quantized.replace(name, module.finished())

    def _working_body(self, index: int, phase: Phase, random: StepStream) -> fx.GraphModule:
        body = self.quantized.chain.body(index)
        layers = self._open_layers(index, body)
        for name, module in list(body.named_modules()):
            if isinstance(module, IntegerWeight) and phase.rounding_rate is not None and name in layers:
                weight = torch.lerp(self._float_weight(layers[name]), module(), phase.start_share)
                body.set_submodule(name, SoftWeight(weight, module))
            elif isinstance(module, ActivationQuantizer):
                body.set_submodule(name, _activation_for(phase, module, random))
        return body

    def _open_layers(self, index: int, body: fx.GraphModule) -> dict[str, str]:
        """By the name of its quantizer, each layer of a unit whose weight is still to be decided.

        A weight that an earlier unit shares was decided there; to change it now would make that unit's caches false.
        """
        layers = {name: layer for layer, name in self.quantized.weights.items()}
        finished = {layer for unit in self.floating.units[:index] for layer in unit.layers}
        names = [name for name, module in body.named_modules() if isinstance(module, IntegerWeight)]
        return {name: layers[name] for name in names if layers[name] not in finished}

    def _float_weight(self, layer: str) -> Tensor:
        return tensor_at(self.floating.module, self.quantized.sources[layer])

    def _keys_behind(self, index: int, need: Need) -> KeySet:
        """Behind the penultimate feature the remainder is the identity, so the keys are the logits."""
        is_last = index == len(self.floating.units) - 1
        return self.keys[Need.LOGITS if is_last else need]

    @torch.enable_grad()
    def _float_gradient(self, index: int, pair: _Pair, float_outputs: State) -> Tensor:
        """Squared gradient of KL(float logits, logits of the quantized unit + float rest) in the unit's output."""
        unit, rest = self.floating.units[index], self.floating.suffix(index, "logits")
        position = unit.outputs.index(unit.target)
        states = advance(self.quantized.chain.body(index), pair.quantized)
        parts = []
        for start in range(0, len(states[0]), 32):
            inputs = [tensor[start : start + 32].detach() for tensor in states]
            inputs[position].requires_grad_(True)
            with torch.no_grad():
                floats = rest(*(tensor[start : start + 32] for tensor in float_outputs))[0]
            divergence = nn.functional.kl_div(
                rest(*inputs)[0].log_softmax(1), floats.log_softmax(1), reduction="sum", log_target=True
            )
            parts.append(torch.autograd.grad(divergence, inputs[position])[0].square())
        squared = torch.cat(parts)
        return squared / squared.mean().clamp(min=torch.finfo(squared.dtype).tiny)


@dataclasses.dataclass(frozen=True)
class _Pair:
    """The state of all images at one cut, behind the quantized and behind the float prefix."""

    quantized: State
    floating: State


def _probe_error(unit: Unit, outputs: State, targets: State) -> float:
    position = unit.outputs.index(unit.target)
    output, target = outputs[position], targets[position]
    count = min(PROBE_IMAGES, len(output))
    return float(lp_error(output[:count], target[:count], channel_axis=unit.channel_axis))


def _activation_for(phase: Phase, quantizer: ActivationQuantizer, random: StepStream) -> nn.Module:
    if phase.activations == "float":
        return nn.Identity()
    return TrainableActivation(
        quantizer,
        random,
        keep_quantized_probability=phase.keep_quantized_probability,
        is_trained=phase.activation_rate is not None,
        has_scale_gradient_factor=phase.has_scale_gradient_factor,
    )


def _with_float_activations(body: fx.GraphModule) -> fx.GraphModule:
    for name, module in list(body.named_modules()):
        if isinstance(module, ActivationQuantizer):
            body.set_submodule(name, nn.Identity())
    return body


@torch.no_grad()
def _scales(phase: Phase, hardened: fx.GraphModule, data: UnitData) -> tuple[float, ...]:
    """Weights of the terms; relative ones are made as large as the host's terms for the unit as the phase finds it."""
    if not any(term.is_relative for term in phase.terms):
        return tuple(term.weight for term in phase.terms)
    index = torch.arange(min(PROBE_IMAGES, len(data.target)), device=data.target.device)
    state = data.quantized if phase.quantized_input_probability > 0 else data.floating
    outputs = hardened(*(tensor[index] for tensor in state))
    batch = data.batch(outputs, index, 0.0, [], phase.needs)
    host = sum(float(term.objective(batch)) * term.weight for term in phase.terms if not term.is_relative)
    scales = []
    for term in phase.terms:
        own = float(term.objective(batch)) if term.is_relative else 1.0
        scales.append(term.weight * host / max(own, 1e-6) if term.is_relative else term.weight)
    return tuple(scales)


def _check_finite(body: fx.GraphModule, unit: str) -> None:
    for name, tensor in body.state_dict().items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise NumericalError(f"unit {unit}: {name} is not finite after optimisation; try a smaller rate")
