"""The one module that knows every stage: model + calibration images + recipe -> quantized model + record."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from clcalib.calibrate.caches import RANGE_IMAGES, round_to_nearest
from clcalib.calibrate.network import NetworkTrace, run_last_phase
from clcalib.calibrate.observer import Observer, SilentObserver
from clcalib.calibrate.precision import convolution_dtype
from clcalib.calibrate.recipe import Recipe
from clcalib.calibrate.space import StoreSpace
from clcalib.calibrate.walk import UnitTrace, Walk
from clcalib.capture.chain import Chain, capture
from clcalib.capture.running import advance
from clcalib.checks import (
    byte_count,
    check_arguments,
    check_negatives,
    check_output,
    checked_device,
    checked_folder,
    checked_grids,
    range_rule,
)
from clcalib.data.calibration import CalibrationSet, EvaluationSet, digest
from clcalib.errors import ClcalibWarning, OutputExistsError
from clcalib.evaluate.accuracy import agreement, logits, top1
from clcalib.evaluate.units import UnitMetrics, unit_metrics
from clcalib.export.checkpoint import Origin, load_checkpoint, save_checkpoint
from clcalib.objectives.batch import Need
from clcalib.objectives.keys import KeySet, as_vectors, build_keys
from clcalib.quant.insert import QuantizedChain, fit_policy, insert_quantizers
from clcalib.quant.kernels import kernels_on
from clcalib.quant.policy import Bits, LayerPolicy, Override, build_policy
from clcalib.quant.ranges import RangeRule
from clcalib.quant.reparameterize import reparameterize_layer_norm
from clcalib.quant.spec import Grid
from clcalib.report.environment import StageClock, collected_warnings, model_digest, peak_memory, versions
from clcalib.report.record import (
    BeforeAfter,
    LastPhaseRecord,
    OnImages,
    RunRecord,
    SignalToNoise,
    UnitRecord,
    write_record,
)

MEASURED_IMAGES = 256


@dataclasses.dataclass(frozen=True)
class QuantizationResult:
    """What ``quantize`` returns.

    Attributes:
        model: the quantized network; same input and output as the float one.
        record: what was done and measured.
        policy: the widths of every layer.
    """

    model: nn.Module
    record: RunRecord
    policy: tuple[LayerPolicy, ...]
    _quantized: QuantizedChain = dataclasses.field(repr=False)
    _origin: Origin = dataclasses.field(repr=False)

    def save(self, folder: str | Path, *, overwrite: bool = False) -> None:
        """Write ``model.safetensors``, ``model.json`` and ``run.json`` into ``folder``.

        Raises:
            OutputExistsError: the folder holds something and ``overwrite`` was not asked for.
        """
        folder = Path(folder)
        if folder.exists() and not overwrite and (not folder.is_dir() or any(folder.iterdir())):
            raise OutputExistsError(f"{folder} exists and is not empty; name another folder, or say overwrite=True")
        folder.mkdir(parents=True, exist_ok=True)
        save_checkpoint(folder, self._quantized, self._origin)
        write_record(self.record, folder / "run.json")


def quantize(
    model: nn.Module,
    calibration: CalibrationSet,
    *,
    recipe: Recipe,
    bits: Bits,
    seed: int = 0,
    setting: str = "qdrop",
    overrides: Mapping[str, Bits | Override] | None = None,
    unit_patterns: Sequence[str] = (),
    weight_range: str = "mse_grid",
    activation_range: str = "mse_grid",
    softmax_grid: Grid = "uniform",
    gelu_grid: Grid = "uniform",
    is_layer_norm_reparameterized: bool = False,
    evaluation: EvaluationSet | None = None,
    held_out: CalibrationSet | None = None,
    measured_images: int = MEASURED_IMAGES,
    device: str | torch.device = "cpu",
    precision: str = "auto",
    memory_budget: int | str | None = None,
    spill_folder: str | Path | None = None,
    observer: Observer | None = None,
) -> QuantizationResult:
    """Quantize a trained network from unlabelled images.

    Args:
        model: any module that ``torch.export`` takes; left untouched.
        calibration: about 1,000 images, normalised as the network expects them.
        recipe: a host method of ``clcalib.recipes``, with or without ``with_contrastive``.
        bits: the widths.
        seed: of every random choice; the caller's global generator is not used.
        setting: which edge layers have 8 bits, ``"qdrop"`` or ``"brecq"``.
        overrides: glob pattern of layer names, or of products of activations (``Chain.products``) -> widths.
        unit_patterns: globs of module paths; each module that matches is one unit.
        weight_range: how a weight's range is found, a name in ``RANGE_RULES``.
        activation_range: the same for activations.
        softmax_grid: where the quantized values of a softmax lie, as attention's second product reads them:
            ``"uniform"``, ``"log2"`` or ``"log_sqrt2"`` (``quant/grids.py``).
        gelu_grid: the same for a GELU: ``"uniform"`` or ``"twin"``.
        is_layer_norm_reparameterized: whether the channels behind each layer norm are first brought to one range, which
            the layers that read them undo (``quant/reparameterize.py``); the float network stays the same.
        evaluation: images to judge the result on; with labels for accuracy.
        held_out: images that only measure the units' errors.
        measured_images: how many images of either set the unit measures look at; 0 leaves them out.
        device: where to compute; the result stays there.
        precision: in which type convolutions compute while a unit is optimised: ``"float32"``, ``"bfloat16"``, or
            ``"auto"``, which is bfloat16 where this machine is faster in it.  Everything else, and the result, is
            float32.
        memory_budget: most bytes, as a number or as "2GB", that the units' stored inputs and targets have in memory;
            what does not fit goes to temporary files.  The result is the same, bit for bit.  None: all in memory.
        spill_folder: where these files are made; None is the system's folder for temporary files.  A folder that is
            itself in memory (as /tmp may be) saves none.
        observer: told of the progress.

    Returns:
        The quantized model, its record and its table of widths.

    Raises:
        ClcalibError: the model, the images or a setting cannot be used; told before any optimisation.

    Example:
        >>> import clcalib, torch
        >>> model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.Flatten(), torch.nn.Linear(144, 5)).eval()
        >>> calibration = clcalib.CalibrationSet.from_tensor(torch.randn(64, 3, 8, 8))
        >>> result = clcalib.quantize(model, calibration, recipe=clcalib.recipes.nearest(), bits=clcalib.Bits(4, 4))
        >>> result.model(calibration.images).shape
        torch.Size([64, 5])
    """
    observer = observer or SilentObserver()
    with torch.random.fork_rng(devices=[]), collected_warnings() as messages, StageClock(observer.stage) as clock:
        check_arguments(calibration, recipe, bits, (("evaluation", evaluation), ("held_out", held_out)))
        rules = range_rule("weight_range", weight_range), range_rule("activation_range", activation_range)
        grids = checked_grids(softmax_grid, gelu_grid)
        place = checked_device(device)
        dtype = convolution_dtype(precision, place)
        budget = None if memory_budget is None else byte_count("memory_budget", memory_budget)
        folder = None if spill_folder is None else checked_folder("spill_folder", spill_folder)
        clock.stage("capture")
        chain = capture(model, calibration.images[:2], unit=recipe.unit, patterns=unit_patterns)
        check_output(chain, recipe, evaluation)
        chain.module.to(place)
        if is_layer_norm_reparameterized:
            chain = reparameterize_layer_norm(chain, calibration.images[:RANGE_IMAGES].to(place))
        rows = build_policy(chain.layers, bits, setting, overrides, products=chain.products)
        policy = fit_policy(chain, rows, grids)
        observer.policy(policy)
        job = _Job(chain, recipe, seed, rules[1], dtype, calibration.images.to(place), observer, clock)
        clock.stage("weight ranges")
        base = insert_quantizers(chain, policy, rules[0])
        with StoreSpace(budget, folder) as space:
            before, after, traces, network = job.calibrate(base, _some(held_out, measured_images, place), space)
        clock.stage("measures")
        units = job.measure(before, after, traces, _some(held_out, measured_images, place), measured_images)
        clock.stage("evaluation")
        accuracies = _accuracies(chain, before, after, evaluation, place)
    record = RunRecord(
        float_top1=accuracies.get("float_top1"),
        nearest_top1=accuracies.get("nearest_top1"),
        quantized_top1=accuracies.get("quantized_top1"),
        agreement=accuracies.get("agreement"),
        weight_bits=bits.weights or 32,
        activation_bits=bits.activations or 32,
        setting=setting,
        recipe=recipe.name,
        contrastive=recipe.contrastive,
        seed=seed,
        steps_per_unit=recipe.steps_per_unit,
        seconds=sum(clock.seconds.values()),
        seconds_per_stage=clock.seconds,
        peak_memory_bytes=peak_memory(place),
        units=units,
        last_phase=None if network is None else _last_phase_record(network),
        calibration_images=len(calibration),
        evaluation_images=0 if evaluation is None else len(evaluation.images),
        device=str(place),
        precision=str(dtype).removeprefix("torch."),
        kernels=kernels_on(place),
        threads=torch.get_num_threads(),
        versions=versions(),
        model_digest=model_digest(model),
        calibration_digest=calibration.provenance.digest,
        evaluation_digest=None if evaluation is None else evaluation.provenance.digest,
        warnings=tuple(messages),
    )
    dtype_name = str(calibration.images.dtype).removeprefix("torch.")
    origin = Origin(recipe.unit, tuple(unit_patterns), tuple(calibration.images.shape[1:]), input_dtype=dtype_name)
    return QuantizationResult(after.chain.module, record, policy, after, origin)


def load(folder: str | Path, model: nn.Module) -> nn.Module:
    """Return the quantized network saved in ``folder``; its outputs are bit for bit those of the saved one.

    Args:
        folder: what ``QuantizationResult.save`` wrote.
        model: the float architecture, with any finite weights; not changed.

    Raises:
        CheckpointError: the files are damaged or belong to another architecture.
    """
    with torch.random.fork_rng(devices=[]):
        return load_checkpoint(Path(folder), model)


@dataclasses.dataclass(frozen=True)
class _Job:
    """One run between its captured chain and its record."""

    chain: Chain
    recipe: Recipe
    seed: int
    activation_rule: RangeRule
    dtype: torch.dtype
    images: Tensor
    observer: Observer
    clock: StageClock

    def calibrate(
        self, base: QuantizedChain, held_out: Tensor | None, space: StoreSpace
    ) -> tuple[QuantizedChain, QuantizedChain, list[UnitTrace], NetworkTrace | None]:
        """Return the chain under nearest rounding, the calibrated one, and what happened to the units and the whole."""
        self.clock.stage("keys")
        needs = self.recipe.needs & {Need.FEATURES, Need.LOGITS}
        keys = _keys(self.chain, self.images) if needs else {}
        check_negatives(self.recipe, keys)
        self.clock.stage("nearest rounding")
        reference = base.copy()
        with warnings.catch_warnings():
            # The same ranges are found again below, and warn there.
            warnings.simplefilter("ignore", ClcalibWarning)
            round_to_nearest(self.chain, reference, self.images, self.activation_rule)
        self.clock.stage("reconstruction")
        walk = Walk(
            self.chain, base, self.recipe, self.activation_rule, keys, self.seed, self.observer, self.dtype, space
        )
        traces = list(walk.run(self.images, held_out))
        if self.recipe.last_phase is not None:
            self.clock.stage("last phase")
        return reference, base, traces, run_last_phase(walk, self.images, held_out)

    def measure(
        self,
        before: QuantizedChain,
        after: QuantizedChain,
        traces: list[UnitTrace],
        held_out: Tensor | None,
        count: int,
    ) -> tuple[UnitRecord, ...]:
        """Compare both quantized chains with the float one, unit by unit, on both image sets."""
        # The bound cannot exceed log K, so both image sets are measured on the same number K.
        count = min(count, len(self.images), count if held_out is None else len(held_out))

        def measured(quantized: QuantizedChain, images: Tensor | None) -> tuple[UnitMetrics | None, ...]:
            if images is None or count < 2:
                return (None,) * len(traces)
            return unit_metrics(self.chain, quantized.chain, images[:count])

        columns = [measured(which, on) for on in (self.images, held_out) for which in (before, after)]
        return tuple(_unit_record(trace, *row) for trace, *row in zip(traces, *columns, strict=True))


def _some(images: CalibrationSet | None, count: int, device: torch.device) -> Tensor | None:
    return None if images is None or count < 1 else images.images[:count].to(device)


def _keys(chain: Chain, images: Tensor) -> dict[Need, KeySet]:
    ends = chain.subgraph((chain.input_name,), (chain.feature_name, chain.output_name))
    features, outputs = advance(ends, (images,), as_vectors)
    numbers: dict[str, int] = {}
    identity = torch.tensor([numbers.setdefault(digest(image), len(numbers)) for image in images.cpu()])
    predictions, identity = outputs.argmax(1), identity.to(images.device)
    return {
        Need.FEATURES: build_keys(features, predictions, identity),
        Need.LOGITS: build_keys(outputs, predictions, identity),
    }


def _accuracies(
    chain: Chain, before: QuantizedChain, after: QuantizedChain, evaluation: EvaluationSet | None, device: torch.device
) -> dict[str, float]:
    if evaluation is None:
        return {}
    floats = logits(chain.module, evaluation.images, device=device)
    own = logits(after.chain.module, evaluation.images, device=device)
    result: dict[str, float] = {"agreement": agreement(own, floats)}
    if evaluation.labels is not None:
        base = logits(before.chain.module, evaluation.images, device=device)
        result["float_top1"] = top1(floats, evaluation.labels)
        result["nearest_top1"] = top1(base, evaluation.labels)
        result["quantized_top1"] = top1(own, evaluation.labels)
    return result


def _unit_record(
    trace: UnitTrace,
    before: UnitMetrics | None,
    after: UnitMetrics | None,
    other_before: UnitMetrics | None,
    other_after: UnitMetrics | None,
) -> UnitRecord:
    bound = None
    if before is not None and after is not None:
        held_out = None
        if other_before is not None and other_after is not None:
            held_out = _pair(other_before.mutual_information_bound, other_after.mutual_information_bound)
        own = BeforeAfter(before=before.mutual_information_bound, after=after.mutual_information_bound)
        bound = OnImages(calibration=own, held_out=held_out)
    gap = None
    if bound is not None and bound.held_out is not None:
        own, other = bound.calibration, bound.held_out
        gap = BeforeAfter(before=own.before - other.before, after=own.after - other.after)
    return UnitRecord(
        name=trace.name,
        kind=trace.kind,
        reconstruction_error=OnImages(
            calibration=BeforeAfter(before=trace.error_before, after=trace.error_after),
            held_out=_pair(trace.held_out_error_before, trace.held_out_error_after),
        ),
        mutual_information_bound=bound,
        mutual_information_gap=gap,
        sqnr_db=SignalToNoise(
            calibration=None if after is None else after.sqnr_db,
            held_out=None if other_after is None else other_after.sqnr_db,
        ),
        layers=trace.layers,
    )


def _last_phase_record(trace: NetworkTrace) -> LastPhaseRecord:
    error = OnImages(
        calibration=BeforeAfter(before=trace.error_before, after=trace.error_after),
        held_out=_pair(trace.held_out_error_before, trace.held_out_error_after),
    )
    return LastPhaseRecord(steps=trace.steps, reconstruction_error=error, changed_codes=trace.changed_codes)


def _pair(before: float | None, after: float | None) -> BeforeAfter | None:
    return None if before is None or after is None else BeforeAfter(before=before, after=after)
