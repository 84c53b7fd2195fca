"""Visits the units in order: finds ranges, optimises, hardens, and moves the caches one unit forward."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, fx, nn

from clcalib.calibrate.caches import find_ranges
from clcalib.calibrate.compensation import compensated
from clcalib.calibrate.correction import corrected, has_norms
from clcalib.calibrate.curves import CurveRecorder, Curves
from clcalib.calibrate.fuse import fuse
from clcalib.calibrate.guard import GUARD_IMAGES, quantizers_of, tolerance_of, worse_than_nearest
from clcalib.calibrate.journal import Journal
from clcalib.calibrate.layout import Layout, device_of
from clcalib.calibrate.loop import Saves, optimise, with_own_parameters
from clcalib.calibrate.moving import advance_rows, squared_gradient
from clcalib.calibrate.observer import Observer
from clcalib.calibrate.pair import Pair
from clcalib.calibrate.probes import ProbeError, check_finite, stored_error, term_scales, unit_error
from clcalib.calibrate.recipe import Phase, Recipe
from clcalib.calibrate.so_far import QualitySoFar
from clcalib.calibrate.space import StoreSpace
from clcalib.calibrate.store import Rows, RowState
from clcalib.calibrate.streams import StepStream, stream
from clcalib.calibrate.unit_data import Inside, UnitData
from clcalib.calibrate.unit_journal import UnitJournal
from clcalib.calibrate.watchdog import watched
from clcalib.calibrate.working import activation_for, found_in, train_biases, weight_for, with_float_activations
from clcalib.capture.chain import Chain
from clcalib.capture.units import Unit
from clcalib.errors import NoBatchNormWarning
from clcalib.hearing import listening
from clcalib.objectives.batch import Need
from clcalib.objectives.keys import KeySet
from clcalib.quant.insert import QuantizedChain, tensor_at
from clcalib.quant.modules import ActivationQuantizer, IntegerWeight
from clcalib.quant.ranges import RangeRule
from clcalib.team.team import Team


@dataclasses.dataclass(frozen=True)
class UnitTrace:
    """What happened to one unit: reconstruction error before (nearest rounding) and after, on both image sets.

    ``kept`` says what the unit has now; with "nearest", the errors after are those before.  ``curves`` are its losses.
    """

    name: str
    kind: Literal["layer", "block"]
    layers: tuple[str, ...]
    error_before: float
    error_after: float
    held_out_error_before: float | None
    held_out_error_after: float | None
    kept: Literal["learned", "nearest"]
    curves: Curves = dataclasses.field(default_factory=Curves)

    @classmethod
    def from_values(cls, values: Mapping[str, Any]) -> UnitTrace:
        """The trace of ``dataclasses.asdict``, also when that was JSON in between."""
        curves = Curves.from_values(values["curves"])
        return cls(**{**values, "layers": tuple(values["layers"]), "curves": curves})


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
        dtype: in which convolutions compute while a unit is optimised.
        space: where the units' inputs and targets are stored; by default in memory without a limit.
        cache_dtype: as what those of the float network are stored.
        is_guarded: whether a unit whose error has grown goes back to nearest rounding.
        guard_tolerance: the share by which it may grow; None as ``tolerance_of`` says.
        journal: where finished units are saved, and found again.
        labels: the classes of the held-out images (N,), where they are known; for who watches alone.
        team: who has which images; what depends on all of them is exchanged, so that all workers do the same.
    """

    floating: Chain
    quantized: QuantizedChain
    recipe: Recipe
    activation_rule: RangeRule
    keys: Mapping[Need, KeySet]
    seed: int
    observer: Observer
    dtype: torch.dtype = torch.float32
    space: StoreSpace = dataclasses.field(default_factory=StoreSpace)
    cache_dtype: torch.dtype = torch.float32
    is_guarded: bool = True
    guard_tolerance: float | None = None
    journal: Journal = dataclasses.field(default_factory=Journal)
    labels: Tensor | None = None
    team: Team = dataclasses.field(default_factory=Team)

    def run(self, images: Tensor, held_out: Tensor | None) -> Iterator[UnitTrace]:
        """Visit every unit; yield its trace as soon as it is finished.  Units that the journal has are not done again.

        Args:
            images: all calibration images (N, ...), also those of other workers; of one that is alone, on the device.
            held_out: other images, only measured on; where there are enough, they are what guards a unit.
        """
        self.warn_without_norms()
        calibration = self.pair(images)
        other = None if held_out is None else self.pair(held_out)
        yield from self.along(range(len(self.floating.units)), calibration, other, self.quality(images, held_out))

    def warn_without_norms(self) -> None:
        """Warn where the recipe has a correction, and the network nothing that it could look at."""
        if self.recipe.correction is not None and not has_norms(self.floating):
            message = "the network has no batch norm, so the correction of distributions is left out"
            warnings.warn(message, NoBatchNormWarning, stacklevel=3)

    def quality(self, images: Tensor, held_out: Tensor | None) -> QualitySoFar:
        """What tells how good the network is so far: on the held-out images where there are some."""
        shown, labels = (images, None) if held_out is None else (held_out, self.labels)
        layout, place = self._layout(shown), device_of(self.floating)
        own = None if labels is None else layout.cut(labels, place)
        return QualitySoFar(self.floating, layout.cut(shown, place), own)

    def along(self, units: range, calibration: Pair, other: Pair | None, so_far: QualitySoFar) -> Iterator[UnitTrace]:
        """Visit neighbouring units.

        Args:
            units: their numbers.
            calibration: the stores before the first of them; in the end behind the last, but for the network's last.
            other: the same of held-out images.
            so_far: told of each unit that was worked on.
        """
        count, passed = len(self.floating.units), units.start
        for index in units:
            saved = self.journal.recall(self.journal.name(index), self.quantized)
            if saved is not None:
                trace = UnitTrace.from_values(saved.values["trace"])
                self.observer.unit_recalled(index, count, trace.name, trace.error_before, trace.error_after)
                yield trace
                continue
            for earlier in range(passed, index):
                self.pass_on(earlier, calibration, other)
            with listening() as told:
                trace = self._visit(index, calibration, other)
            passed = index + 1
            so_far.tell(self.observer, index, (calibration if other is None else other).quantized)
            self.journal.commit(index, count, quantizers_of(self.quantized.chain.body(index)), trace, told)
            yield trace
        for earlier in range(passed, units.stop if units.stop < count else 0):
            self.pass_on(earlier, calibration, other)

    def pair(self, images: Tensor) -> Pair:
        """The stores before the first unit, of this worker's part of all images."""
        layout = self._layout(images)
        return Pair.of(layout.cut(images, device_of(self.floating)), layout)

    def _layout(self, images: Tensor) -> Layout:
        return Layout.of(self.team, len(images))

    def pass_on(self, index: int, pair: Pair, other: Pair | None) -> None:
        """Bring the pairs behind a unit that is finished."""
        float_body, body = self.floating.body(index), self.quantized.chain.body(index)
        for each in (pair,) if other is None else (pair, other):
            each.floating = self._floats(float_body, each)
            each.quantized = advance_rows(body, each.quantized, self.space, layout=each.layout)

    def _floats(self, float_body: fx.GraphModule, pair: Pair) -> RowState:
        """A unit's float outputs, in new stores."""
        return advance_rows(float_body, pair.floating, self.space, self.cache_dtype, layout=pair.layout)

    def _visit(self, index: int, pair: Pair, other: Pair | None) -> UnitTrace:
        unit = self.floating.units[index]
        is_skipped = self.recipe.skips_first_unit and index == 0
        phases = () if is_skipped else self.recipe.phases
        steps = sum(phase.steps for phase in phases)
        self.observer.unit_started(index, len(self.floating.units), unit.name, unit.kind, steps)
        float_body = self.floating.body(index)
        targets = self._floats(float_body, pair)
        before = self._find_ranges(index, pair, targets)
        other_before: float | None = None
        if other is not None:
            other_targets = self._floats(float_body, other)
            body = self.quantized.chain.body(index)
            other_before = unit_error(unit, body, other.quantized, other_targets, other.layout)
        plain = quantizers_of(self.quantized.chain.body(index))
        has_feedback = self.recipe.start == "error_feedback" and not is_skipped
        if has_feedback:
            self._feed_back(index, pair)
        is_sound, curves = True, CurveRecorder()
        if phases:
            if self.recipe.correction is not None:
                pair.floating = corrected(
                    self.floating,
                    index,
                    pair.floating,
                    self.recipe.correction,
                    self.space,
                    float_dtype=self.cache_dtype,
                    report=self.observer.correcting,
                    layout=pair.layout,
                )
            is_sound = self.optimise(index, phases, pair, targets, curves)
        body = self.quantized.chain.body(index)
        check_finite(body, unit.name)
        kept: Literal["learned", "nearest"] = "learned" if phases or has_feedback else "nearest"
        if kept == "learned" and (self.is_guarded or not is_sound):
            judged, name, count, layout = (pair.quantized, targets, before), "calibration", 0, pair.layout
            if is_sound and other is not None and other_before is not None and other.layout.count >= GUARD_IMAGES:
                judged, name, count = (other.quantized, other_targets, other_before), "held-out", GUARD_IMAGES
                layout = other.layout
            tolerance = tolerance_of(self.recipe, count, self.guard_tolerance) if is_sound else 0.0
            warning = worse_than_nearest(unit, body, *judged, images=name, tolerance=tolerance, layout=layout)
            del judged  # stores, which are freed when the pairs move on
            if warning is not None:
                warnings.warn(warning, stacklevel=3)
                kept, body = "nearest", self._put_back(index, plain)
        after, other_after = self._move(unit, body, pair, targets), None
        if other is not None:
            other_after = self._move(unit, body, other, other_targets)
        self.observer.unit_finished(index, unit.name, before, after)
        errors = before, after, other_before, other_after
        return UnitTrace(unit.name, unit.kind, unit.layers, *errors, kept, curves.curves())

    def _move(self, unit: Unit, body: fx.GraphModule, pair: Pair, targets: RowState) -> float:
        """Bring the pair behind the unit; return the unit's error."""
        pair.floating = targets  # frees the stores of the float input, before those of the quantized output are made
        pair.quantized = advance_rows(body, pair.quantized, self.space, layout=pair.layout)
        return stored_error(unit, pair.quantized, targets, pair.layout)

    def _put_back(self, index: int, quantizers: Mapping[str, nn.Module]) -> fx.GraphModule:
        """Give a unit the quantizers that it had; return it."""
        for name, quantizer in quantizers.items():
            self.quantized.replace(name, quantizer)
        return self.quantized.chain.body(index)

    def _find_ranges(self, index: int, pair: Pair, targets: RowState) -> float:
        """Set the unit's ranges; return its error with them and with nearest weights."""
        unit, body = self.floating.units[index], self.quantized.chain.body(index)
        ranges = find_ranges(body, pair.quantized, self.activation_rule, self.space, pair.layout)
        error = ProbeError(unit, targets, pair.layout)
        ranges.lockstep.run_through(error.add)
        for warning in ranges.warnings(unit.name):
            warnings.warn(warning, stacklevel=2)
        for name, quantizer in ranges.quantizers.items():
            self.quantized.replace(name, quantizer)
        return error.total()

    def _feed_back(self, index: int, pair: Pair) -> None:
        body = self.quantized.chain.body(index)
        weights = {name: self._float_weight(layer) for name, layer in self._open_layers(index, body).items()}
        for name, quantizer in compensated(body, weights, pair.quantized, self.space, pair.layout).items():
            self.quantized.replace(name, quantizer)

    def optimise(
        self,
        index: int,
        phases: tuple[Phase, ...],
        pair: Pair,
        targets: RowState,
        curves: CurveRecorder,
        inside: Inside | None = None,
    ) -> bool:
        """Run phases on one unit, and put the quantizers that they find into their places.

        Args:
            index: of the unit.
            phases: one after the other.
            pair: the stores at the unit's input.
            targets: its float outputs; only the one of its target is read.
            curves: told of the losses.
            inside: the units inside, where it is the whole network.

        Returns:
            whether all losses were finite at the first attempt (``watchdog.py``).
        """
        unit = self.floating.units[index]
        position = unit.outputs.index(unit.target)
        needs = frozenset[Need]().union(*(phase.needs for phase in phases))
        points = tuple(need for need in (Need.FEATURES, Need.LOGITS) if need in needs)
        data = UnitData(
            quantized=pair.quantized,
            floating=pair.floating,
            target=targets[position],
            target_position=position,
            read=self._rest(index, points),
            read_points=points,
            keys={need: self._keys_behind(index, need) for need in points},
            float_gradient=self._float_gradient(index, pair, targets) if Need.FLOAT_GRADIENT in needs else None,
            channel_axis=unit.channel_axis,
            inside=inside,
            dealt=pair.layout,
        )
        done, saves = 0, UnitJournal(self.journal, index, self.quantized, curves)
        for number, phase in enumerate(phases):
            if number >= saves.place.phase:
                saves.begin_phase(number)
                run = partial(self._run_phase, index, number, data, done, curves, saves)
                watched(unit.name, run, phase, self.dtype, saves)
            done += phase.steps
        return saves.place.is_sound

    def _run_phase(
        self,
        index: int,
        number: int,
        data: UnitData,
        done: int,
        curves: CurveRecorder,
        saves: Saves,
        phase: Phase,
        dtype: torch.dtype,
        is_watched: bool,
    ) -> None:
        random = StepStream(self.seed, index, number, self.team.shards)
        own = stream(self.seed, index, number, -1)  # before the first step
        phase = with_own_parameters(phase, data.target.first(1), data.channel_axis, own)
        body = self.quantized.chain.body(index)
        hardened = with_float_activations(body) if phase.activations == "float" else body
        scales = term_scales(phase, hardened, data)
        working = fuse(self._working_body(index, phase, random), dtype, casts_inputs=False)

        def report(step: int, losses: Mapping[str, float]) -> None:
            self.observer.step(done + step, losses)

        def record(step: int, losses: Mapping[str, float]) -> None:
            curves.add(done + step, losses)

        told = {"report": report, "record": record}
        optimise(working, data, phase, random, scales=scales, saves=saves, is_watched=is_watched, **told)
        for name, module in found_in(working).items():
            self.quantized.replace(name, module)

    def _working_body(self, index: int, phase: Phase, random: StepStream) -> fx.GraphModule:
        body = self.quantized.chain.body(index)
        layers = self._open_layers(index, body)
        if phase.bias_rate is not None:
            weights = {name: self._float_weight(layer) for name, layer in layers.items()}
            train_biases(self.quantized.chain, index, body, weights)
        for name, module in list(body.named_modules()):
            if isinstance(module, IntegerWeight) and name in layers:
                body.set_submodule(name, weight_for(phase, self._float_weight(layers[name]), module))
            elif isinstance(module, ActivationQuantizer):
                body.set_submodule(name, activation_for(phase, module, random))
        return body

    def _rest(self, index: int, points: tuple[Need, ...]) -> fx.GraphModule | None:
        """The frozen float rest of the network, read at all points in one pass; behind the last unit, the identity."""
        if not points:
            return None
        chain, unit = self.floating, self.floating.units[index]
        feature = chain.feature_name if self._has_feature(index) else chain.output_name
        names = {Need.FEATURES: feature, Need.LOGITS: chain.output_name}
        ends = [names[point] for point in points]
        rest = fuse(chain.cut(unit.outputs, ends), self.dtype)
        return rest if chain.placed is None else chain.placed(rest, unit.outputs, ends, self.dtype)

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
        return self.keys[need if self._has_feature(index) else Need.LOGITS]

    def _has_feature(self, index: int) -> bool:
        """Whether the penultimate feature can still be read behind the unit."""
        is_last = index == len(self.floating.units) - 1
        return not is_last or self.floating.feature_name in self.floating.units[index].outputs

    def _float_gradient(self, index: int, pair: Pair, targets: RowState) -> Rows:
        unit, rest = self.floating.units[index], self.floating.suffix(index, "logits")
        body, position = self.quantized.chain.body(index), unit.outputs.index(unit.target)
        return squared_gradient(body, rest, pair.quantized, targets, position, self.space, layout=pair.layout)
