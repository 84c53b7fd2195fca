"""One run from its arguments to its calibrated chain: everything of ``quantize`` but the record."""

from __future__ import annotations

import copy
import dataclasses
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from clcalib.calibrate.caches import RANGE_IMAGES, round_to_nearest
from clcalib.calibrate.guard import quantizers_of, tolerance_of
from clcalib.calibrate.journal import Journal
from clcalib.calibrate.layout import Layout, device_of
from clcalib.calibrate.magnitudes import check_magnitudes
from clcalib.calibrate.network import NetworkTrace, run_last_phase
from clcalib.calibrate.observer import Observer
from clcalib.calibrate.precision import cache_dtype, convolution_dtype
from clcalib.calibrate.recipe import Recipe
from clcalib.calibrate.shares import check_shards
from clcalib.calibrate.space import StoreSpace
from clcalib.calibrate.walk import UnitTrace, Walk
from clcalib.capture.chain import Chain, capture
from clcalib.capture.outputs import whole
from clcalib.capture.placing import home_of, move
from clcalib.capture.running import advance
from clcalib.capture.submodule import Part
from clcalib.checks import (
    byte_count,
    check_arguments,
    check_can_be_changed,
    check_line,
    check_negatives,
    check_output,
    checked_device,
    checked_folder,
    checked_grids,
    checked_share,
    range_rule,
)
from clcalib.data.calibration import CalibrationSet, EvaluationSet, digest, labels_of
from clcalib.errors import ClcalibWarning
from clcalib.evaluate.accuracy import logits
from clcalib.evaluate.detection import is_detector
from clcalib.evaluate.units import UnitMetrics, unit_metrics
from clcalib.export.deployed import round_to_target
from clcalib.export.rehearsal import Widths, rehearse
from clcalib.hearing import listening
from clcalib.objectives.batch import Need
from clcalib.objectives.keys import KeySet, as_vectors, build_keys
from clcalib.placed.network import whole_of
from clcalib.placed.plan import Amounts, planned
from clcalib.quant.insert import QuantizedChain, insert_quantizers
from clcalib.quant.kernels import kernels_on
from clcalib.quant.policy import Bits, EdgeBits, LayerPolicy, Overrides
from clcalib.quant.ranges import RANGE_RULES, RangeRule
from clcalib.quant.reparameterize import reparameterize_layer_norm
from clcalib.quant.spec import Grid
from clcalib.quant.targets import Target, target_of
from clcalib.report.environment import StageClock
from clcalib.report.record import UnitRecord
from clcalib.team.line import Line
from clcalib.team.memory import MemoryPlan
from clcalib.team.team import Team
from clcalib.unit_records import unit_record

START = "start"  # what the ranges of weights, and nearest rounding, are saved as


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What ``Job.calibrate`` leaves.

    Attributes:
        before: the chain under nearest rounding.
        after: the calibrated one.
        traces: what happened to each unit.
        network: what the last phase did, or None without one.
    """

    before: QuantizedChain
    after: QuantizedChain
    traces: list[UnitTrace]
    network: NetworkTrace | None


@dataclasses.dataclass(frozen=True)
class Job:
    """One run between its captured chain and its record; made by ``prepare``.

    Attributes:
        chain: the float chain, on the device.
        policy: its table of widths.
        target: whose kernels' rules it follows, or None for those of the papers.
        part: the part of a model that the chain is of, or None for the whole model.
        is_detector: whether that model's detections are to be compared.
        images, held_out: what the chain reads, on the device; the second as many as are measured, or None.  Of several
            shards they stay where they were, and each worker takes its own to the device.
        labels: the classes of the held-out images, where they are known; on the CPU.
        dtype: of convolutions while a unit is optimised.
        cache_dtype: as what the float network's values are stored.
        line: this worker among those that have the units; None where all are here.
        plan: which worker has which.
        identity: what it is, where that was found before weights were let go of.
    """

    chain: Chain
    policy: tuple[LayerPolicy, ...]
    target: Target | None
    part: Part | None
    is_detector: bool
    recipe: Recipe
    seed: int
    weight_rule: RangeRule
    activation_rule: RangeRule
    images: Tensor
    held_out: Tensor | None
    labels: Tensor | None
    measured_images: int
    device: torch.device
    dtype: torch.dtype
    cache_dtype: torch.dtype
    memory_budget: int | None
    spill_folder: Path | None
    is_guarded: bool
    guard_tolerance: float | None
    observer: Observer
    clock: StageClock
    team: Team = dataclasses.field(default_factory=Team)
    line: Line | None = None
    plan: MemoryPlan = ()
    identity: Mapping[str, str] | None = None

    @property
    def used_tolerance(self) -> float | None:
        """What units may lose without being put back to nearest rounding; None where they are not guarded."""
        held_out = 0 if self.held_out is None else len(self.held_out)
        return tolerance_of(self.recipe, held_out, self.guard_tolerance) if self.is_guarded else None

    def calibrate(self, space: StoreSpace, journal: Journal | None = None) -> Outcome:
        """Find ranges, round, and optimise unit after unit.

        Args:
            space: where stores are kept.
            journal: where what is finished is saved, and found again.
        """
        journal = journal or Journal()
        kernels_on(self.device)  # builds them, and says where it cannot, while warnings are heard
        keys = self.keys()
        base, reference = self._start(space, journal)
        self.clock.stage("reconstruction")
        walk = self.walk(base, keys, space, journal)
        traces = list(walk.run(self.images, self.held_out))
        if self.recipe.last_phase is not None:
            self.clock.stage("last phase")
        network = run_last_phase(walk, self.images, self.held_out)
        if self.target is not None:
            round_to_target(base, self.target)
        return Outcome(reference, base, traces, network)

    def keys(self) -> dict[Need, KeySet]:
        """The keys of all images, where some term needs them; before, the float network's own values are looked at."""
        self.clock.stage("keys")
        check_magnitudes(self.chain, self.images, self.held_out, team=self.team)
        needs = self.recipe.needs & {Need.FEATURES, Need.LOGITS}
        keys = _keys(self.chain, self.images, self.team) if needs else {}
        check_negatives(self.recipe, keys)
        return keys

    def walk(self, quantized: QuantizedChain, keys: Mapping[Need, KeySet], space: StoreSpace, journal: Journal) -> Walk:
        """The walk over the chain, which changes its quantized copy."""
        return Walk(
            floating=self.chain,
            quantized=quantized,
            recipe=self.recipe,
            activation_rule=self.activation_rule,
            keys=keys,
            seed=self.seed,
            observer=self.observer,
            dtype=self.dtype,
            space=space,
            cache_dtype=self.cache_dtype,
            is_guarded=self.is_guarded,
            guard_tolerance=self.guard_tolerance,
            journal=journal,
            labels=self.labels,
            team=self.team,
        )

    def _start(self, space: StoreSpace, journal: Journal) -> tuple[QuantizedChain, QuantizedChain]:
        """The chain with the ranges of weights alone, and the one under nearest rounding."""
        placement = None if self.target is None else self.target.placement
        self.clock.stage("weight ranges")
        if journal.has(START):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", ClcalibWarning)  # of weights that are replaced at once
                reference = insert_quantizers(self.chain, self.policy, RANGE_RULES["minmax"], placement)
            base = reference.copy()
            if journal.recall(START, reference) is not None:
                for name in base.weights.values():
                    base.replace(name, copy.deepcopy(reference.chain.module.get_submodule(name)))
                return base, reference
        with listening() as told:
            base = insert_quantizers(self.chain, self.policy, self.weight_rule, placement)
        self.clock.stage("nearest rounding")
        reference = base.copy()
        with warnings.catch_warnings():
            # The same ranges are found again in the walk, and warn there.
            warnings.simplefilter("ignore", ClcalibWarning)
            round_to_nearest(self.chain, reference, self.images, self.activation_rule, space, team=self.team)
        journal.commit_part(START, quantizers_of(reference.chain.module), told)
        return base, reference

    def measure(self, outcome: Outcome) -> tuple[UnitRecord, ...]:
        """Compare both quantized chains with the float one, unit by unit, on both image sets."""
        self.clock.stage("measures")
        # The bound cannot exceed log K, so both image sets are measured on the same number K.
        sizes = (self.measured_images, len(self.images), len(self.images if self.held_out is None else self.held_out))
        count = min(sizes)

        def measured(quantized: QuantizedChain, images: Tensor | None) -> tuple[UnitMetrics | None, ...]:
            if images is None or count < 2:
                return (None,) * len(outcome.traces)
            return unit_metrics(self.chain, quantized.chain, images[:count].to(self.device))

        chains = (outcome.before, outcome.after)
        columns = [measured(which, on) for on in (self.images, self.held_out) for which in chains]
        return tuple(unit_record(trace, *row) for trace, *row in zip(outcome.traces, *columns, strict=True))

    def network(self, chain: Chain) -> nn.Module:
        """What answers as the model does: the chain's module, or the whole model with it in its place."""
        module = whole(chain.module) if chain.placed is None else whole_of(chain)
        return module if self.part is None else self.part.put_back(module)


def prepare(
    model: nn.Module,
    calibration: CalibrationSet,
    *,
    recipe: Recipe,
    bits: Bits,
    seed: int,
    setting: str,
    first_last_bits: EdgeBits,
    overrides: Overrides | None,
    unit_patterns: Sequence[str],
    submodule: str | None,
    target: str | None,
    weight_range: str | RangeRule,
    activation_range: str | RangeRule,
    softmax_grid: Grid,
    gelu_grid: Grid,
    is_layer_norm_reparameterized: bool,
    evaluation: EvaluationSet | None,
    held_out: CalibrationSet | None,
    measured_images: int,
    device: str | torch.device,
    precision: str,
    cache_precision: str,
    memory_budget: int | str | None,
    spill_folder: str | Path | None,
    is_guarded: bool,
    guard_tolerance: float | None,
    is_rehearsed: bool,
    observer: Observer,
    clock: StageClock,
    team: Team | None = None,
    line: Line | None = None,
) -> Job:
    """Check everything that can be wrong, capture the network and settle the widths; ``quantize`` says what is what.

    Raises:
        ClcalibError: the model, the images or a setting cannot be used.
    """
    check_arguments(calibration, recipe, bits, (("evaluation", evaluation), ("held_out", held_out)))
    rules = range_rule("weight_range", weight_range), range_rule("activation_range", activation_range)
    grids = checked_grids(softmax_grid, gelu_grid)
    runtime = target_of(target)
    place = checked_device(device)
    team = team or Team()
    dtype, stored = _agreed(convolution_dtype(precision, place), team), cache_dtype(cache_precision)
    budget = None if memory_budget is None else byte_count("memory_budget", memory_budget)
    folder = None if spill_folder is None else checked_folder("spill_folder", spill_folder)
    clock.stage("capture")
    others = None if held_out is None or measured_images < 1 else held_out.images[:measured_images]
    part, images, is_detecting = None, calibration.images, False
    if submodule is not None:
        part, images = Part.of(model, submodule, images)
        others = None if others is None else part.rows(others)
    module = model if part is None else part.module
    chain = capture(module, images[:2], unit=recipe.unit, patterns=unit_patterns)
    if part is not None and evaluation is not None:
        home = home_of(part.model)
        is_detecting = is_detector(part.model, evaluation.images[:2].to(home))
        if not is_detecting:
            logits(part.model, evaluation.images[:2], device=home)  # raises where the model does not classify
    check_output(chain, recipe, evaluation if part is None else None)
    check_can_be_changed(recipe, images)
    move(chain.module, place)
    if is_layer_norm_reparameterized:
        chain = reparameterize_layer_norm(chain, images[:RANGE_IMAGES].to(place))
    widths = Widths(chain, bits, setting, overrides, first_last_bits, grids)
    policy = widths.policy(runtime)
    layouts = Layout.of(team, len(images)), None if others is None else Layout.of(team, len(others))
    check_shards(recipe.all_phases, *layouts)
    observer.policy(policy)
    plan: MemoryPlan = ()
    if line is not None:
        given = {
            "team": team.shards > 1,
            "target": runtime is not None,
            "submodule": part is not None,
            "is_layer_norm_reparameterized": is_layer_norm_reparameterized,
        }
        check_line(recipe, given, place)
        count = len(images) + (0 if others is None else len(others))
        is_read = bool(recipe.needs & {Need.FEATURES, Need.LOGITS})
        amounts = Amounts(count, stored, budget, is_trained=bool(recipe.phases), is_read=is_read)
        plan = planned(chain, policy, amounts, line.workers)
        observer.placed(plan)
    if runtime is not None and is_rehearsed:
        clock.stage("rehearsal")
        rehearse(widths, runtime, images)
    return Job(
        chain=chain,
        policy=policy,
        target=runtime,
        part=part,
        is_detector=is_detecting,
        recipe=recipe,
        seed=seed,
        weight_rule=rules[0],
        activation_rule=rules[1],
        images=images.to(place) if team.shards == 1 else images,
        held_out=others.to(place) if others is not None and team.shards == 1 else others,
        labels=None if held_out is None or part is not None else labels_of(held_out, evaluation, measured_images),
        measured_images=measured_images,
        device=place,
        dtype=dtype,
        cache_dtype=stored,
        memory_budget=budget,
        spill_folder=folder,
        is_guarded=is_guarded,
        guard_tolerance=None if guard_tolerance is None else checked_share("guard_tolerance", guard_tolerance),
        observer=observer,
        clock=clock,
        team=team,
        line=line,
        plan=plan,
    )


def _agreed(dtype: torch.dtype, team: Team) -> torch.dtype:
    """The type that worker 0 has chosen, where others may have measured another one to be faster."""
    if team.workers == 1:
        return dtype
    name = team.exchange.broadcast(str(dtype).encode() if team.rank == 0 else None).decode()
    return {str(known): known for known in (torch.float32, torch.bfloat16)}[name]


def _keys(chain: Chain, images: Tensor, team: Team | None = None) -> dict[Need, KeySet]:
    """The keys of all images, on each worker, so that a query has as many negatives whoever has its image."""
    ends = chain.subgraph((chain.input_name,), (chain.feature_name, chain.output_name))
    layout = Layout.of(team or Team(), len(images))
    own = layout.cut(images, device_of(chain))
    parts = [(layout.aligned(own[first : first + count]),) for first, count in layout.shard_spans]
    columns = zip(*(advance(ends, part, as_vectors) for part in parts), strict=True)
    features, outputs = (layout.gathered(torch.cat(column)) for column in columns)
    numbers: dict[str, int] = {}
    identity = torch.tensor([numbers.setdefault(digest(image), len(numbers)) for image in images.cpu()])
    predictions, identity = outputs.argmax(1), identity.to(outputs.device)
    return {
        Need.FEATURES: build_keys(features, predictions, identity),
        Need.LOGITS: build_keys(outputs, predictions, identity),
    }
