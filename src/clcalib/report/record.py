"""The run record: what a run was given, what it measured and how long it took, as versioned JSON (``run.json``).

Every number in it is finite: a record with NaN or infinity cannot be made, written or read.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal

from pydantic import Field, JsonValue

from clcalib.files import write_atomically
from clcalib.report.deployment import DeploymentRecord
from clcalib.report.reading import read_model
from clcalib.report.values import BitWidth, Count, Fraction, Frozen, check_finite

SCHEMA_VERSION: Literal[1] = 1


class BeforeAfter(Frozen):
    """One quantity of a unit, with nearest rounding (before) and after its optimisation."""

    before: float
    after: float


class OnImages(Frozen):
    """The same quantity on the calibration images and on images that took no part in calibration."""

    calibration: BeforeAfter
    held_out: BeforeAfter | None = None


class SignalToNoise(Frozen):
    """Signal-to-quantization-noise ratio of the finished unit in decibel; None where there is no noise at all."""

    calibration: float | None = None
    held_out: float | None = None


class UnitRecord(Frozen):
    """What was measured on one unit.

    Attributes:
        name: the unit's name in the chain.
        kind: "layer" or "block".
        reconstruction_error: squared difference to the float output, summed over channels, mean over batch and space.
            Before: the unit under nearest rounding behind the prefix that was calibrated already.
        mutual_information_bound: lower bound of I(A_F; A_Q) in nat; None where it was not measured.  Before: the whole
            network under nearest rounding.
        mutual_information_gap: the bound on the calibration images less the one on the held-out images.
        sqnr_db: signal-to-quantization-noise ratio in decibel.
        layers: the names of the weighted layers in the unit.
        kept: "learned", or "nearest" where nothing was optimised or that did not help on held-out images.
    """

    name: str
    kind: Literal["layer", "block"]
    reconstruction_error: OnImages
    mutual_information_bound: OnImages | None = None
    mutual_information_gap: BeforeAfter | None = None
    sqnr_db: SignalToNoise = Field(default_factory=SignalToNoise)
    layers: tuple[str, ...] = ()
    kept: Literal["learned", "nearest"] = "learned"


class LayerRecord(Frozen):
    """One row of the table of widths; None is float.  ``reason`` says why the widths are not those of the run."""

    name: str
    kind: str
    weight_bits: BitWidth | None
    input_bits: BitWidth | None
    reason: str


class FloatRecord(Frozen):
    """One layer with weights, or one matrix product, that computes in float, and why (``capture/coverage.py``).

    Attributes:
        name: of the layer or product, or of the weight.
        operator: what it computes.
        parameters: how many numbers it holds; 0 for a product of two activations.
        reason: why it stays in float.
    """

    name: str
    operator: str
    parameters: Count
    reason: str


class DetectionRecord(Frozen):
    """How far the detections of nearest rounding and of the result are those of the float detector.

    Attributes:
        score_threshold: from which score on detections count; detections: how many the float detector has.
        nearest_matched, matched: the share of them that is found too, or None where there are none.
        nearest_overlap, overlap: the mean intersection over union of what is found, or None.
    """

    score_threshold: Fraction
    detections: Count
    nearest_matched: Fraction | None
    nearest_overlap: Fraction | None
    matched: Fraction | None
    overlap: Fraction | None


class LastPhaseRecord(Frozen):
    """What the phase over the whole network did; the units' own errors are those from before it.

    Attributes:
        steps: of the phase.
        reconstruction_error: at the network's end, before and after the phase.
        changed_codes: the share of the weights that it gave another code.
    """

    steps: Count
    reconstruction_error: OnImages
    changed_codes: Fraction


class TargetRound(Frozen):
    """One run on the way to an accuracy.

    Attributes:
        drop: what it lost on the deciding images, in percentage points.
        mean_weight_bits: over all quantized weights.
        widths: layer -> its widths, such as "W2A4".
        sensitivities: unit -> divergence of the outputs in nat when only this unit is quantized.
        raised: the units that got more bits for the next run.
    """

    drop: float
    mean_weight_bits: float
    widths: dict[str, str]
    sensitivities: dict[str, float]
    raised: tuple[str, ...] = ()


class TargetRecord(Frozen):
    """How widths were raised until an accuracy was kept.

    Attributes:
        max_drop: what was asked for, in percentage points.
        measure: "top1", or "agreement" with the float network where there are no labels.
        images: how many images decided; they are not those of the record's own accuracies.
        is_met: whether the result keeps it, on these images.
        rounds: all runs.
    """

    max_drop: float
    measure: Literal["top1", "agreement"]
    images: Count
    is_met: bool
    rounds: tuple[TargetRound, ...]


class UnitWidths(Frozen):
    """What the search for widths found of one unit, or one layer.

    Attributes:
        layers: the layers (and products of activations) in it.
        widths: the chosen pair, such as "W3A4"; None where rules and patterns left nothing to choose.
        bytes: of its weights.
        sensitivities: pair of widths -> what quantizing this unit alone costs, as ``measure`` says.
    """

    name: str
    layers: tuple[str, ...]
    widths: str | None
    bytes: Count
    sensitivities: dict[str, float]


class BudgetRecord(Frozen):
    """How widths were chosen within a budget.

    Attributes:
        size_budget, cost_budget: what was asked for: bytes of weights, and bit operations as a share of those with 8
            bits everywhere; None without one.
        size, cost: what the result has; smallest_size, smallest_cost: the least that the candidates allow.
        mean_weight_bits: over all weights of layers, those in float with 32.
        per: whether a choice was made for each unit or for each layer.
        measure: "divergence" of the outputs in nat, or the share of images with a "changed" class.
        images: how many the sensitivities were measured on.
        sensitivity: the sum over all units of what was chosen.
        is_optimal: whether no choice has a smaller sum; gap: else, how far it is above a lower bound, as its share.
    """

    size_budget: Count | None
    cost_budget: float | None
    size: Count
    cost: float
    smallest_size: Count
    smallest_cost: float
    mean_weight_bits: float
    per: Literal["unit", "layer"]
    measure: Literal["divergence", "changed"]
    images: Count
    sensitivity: float
    is_optimal: bool
    gap: float
    units: tuple[UnitWidths, ...]


class RunRecord(Frozen):
    """One run.  Accuracies are fractions from 0 to 1, and None where no labels were given.

    Attributes:
        float_top1: top-1 accuracy of the float model.
        nearest_top1: top-1 accuracy with nearest rounding at the same widths.
        quantized_top1: top-1 accuracy of the result.
        agreement: fraction of the evaluation images on which the result and the float model predict the same class;
            nearest_agreement: the same of nearest rounding.
        policy: the widths of every layer.
        float_parts: everything with weights, and every matrix product, that is not quantized, each with the reason.
        contrastive: the settings of the contrastive term as they were asked for, where None leaves the choice to
            clcalib, or None without the term.  ``resolved`` is a list of what was computed, one table for each phase,
            the last one over the whole network included: ``phase`` (its name), ``interval``, ``images`` (of a step)
            and ``on`` (which pass of the unit).
        detection: of a detector of which a part was quantized, instead of accuracy and agreement.
        last_phase: what the phase over the whole network did, or None without one.
        runtime_target: the name of the target whose kernels the result is for, or None.
        deployment: the file that was written for it and how it was checked, or None.
        target: how widths were raised for the sake of accuracy, or None.
        budget: how widths were chosen within a budget, or None; weight_bits is then only what was asked for.
        submodule: the path of the part that was quantized, or None for the whole model.
        seconds: wall-clock time of all of it; resumptions: how often it went on after a stop.
        seconds_per_stage: wall-clock time of each stage, in the order in which they ran, since the last stop.
        peak_memory_bytes: the highest resident memory of the process (of the device, where it has its own).
        stored_bytes, spilled_bytes: the most that the units' stored inputs and targets had in memory and in files.
        guard_tolerance: by what share a unit's error could be larger than with nearest rounding, which else took its
            place; None where units were not guarded.
        calibration_transform: what was done to the pixels of the calibration images.
        versions: the versions of Python, clcalib and torch.
        precision: the type in which convolutions computed during optimisation; cache_precision: the type in which the
            float network's values between units were stored; kernels: what ran the elementwise passes, "compiled",
            "triton" or "plain"; threads: of the CPU; shards: into how many parts the images were split.  With the
            versions and the machine, these are what makes a result repeatable to the bit.
        workers: how many processes worked on the shards, or on the units, which changes no bit of the result;
            peak_memory_bytes, stored_bytes and spilled_bytes are those of the one that wrote the record.
        model_digest: sha256 of the float weights; calibration_digest and evaluation_digest: of the images.
        warnings: the warnings of the run, each once.
    """

    schema_version: Literal[1] = SCHEMA_VERSION
    float_top1: Fraction | None = None
    nearest_top1: Fraction | None = None
    quantized_top1: Fraction | None = None
    agreement: Fraction | None = None
    nearest_agreement: Fraction | None = None
    weight_bits: BitWidth
    activation_bits: BitWidth
    setting: str
    policy: tuple[LayerRecord, ...] = ()
    float_parts: tuple[FloatRecord, ...] = ()
    recipe: str
    contrastive: dict[str, JsonValue] | None = None
    seed: int
    steps_per_unit: Count
    seconds: float = Field(ge=0.0)
    resumptions: Count = 0
    seconds_per_stage: dict[str, float] = Field(default_factory=dict)
    peak_memory_bytes: Count
    stored_bytes: Count = 0
    spilled_bytes: Count = 0
    guard_tolerance: float | None = Field(default=None, ge=0.0)
    units: tuple[UnitRecord, ...] = ()
    detection: DetectionRecord | None = None
    last_phase: LastPhaseRecord | None = None
    runtime_target: str | None = None
    deployment: DeploymentRecord | None = None
    target: TargetRecord | None = None
    budget: BudgetRecord | None = None
    submodule: str | None = None
    calibration_images: Count
    calibration_transform: str | None = None
    evaluation_images: Count = 0
    device: str
    precision: str = "float32"
    cache_precision: str = "float32"
    kernels: str = "plain"
    threads: int = Field(ge=1)
    shards: int = Field(default=1, ge=1)
    workers: int = Field(default=1, ge=1)
    versions: dict[str, str] = Field(default_factory=dict)
    model_digest: str
    calibration_digest: str
    evaluation_digest: str | None = None
    warnings: tuple[str, ...] = ()


def write_record(record: RunRecord, path: str | Path) -> None:
    """Write ``record`` as JSON, atomically.

    Raises:
        NumericalError: a number in it is not finite; nothing is written and the old file stays.
    """
    # Dumped as Python values first: pydantic's own JSON writer would turn NaN into null in silence.
    values = record.model_dump(mode="python")
    check_finite(values, "RunRecord")
    text = json.dumps(values, indent=2, ensure_ascii=False, allow_nan=False)
    write_atomically(path, (text + "\n").encode())


def read_record(path: str | Path) -> RunRecord:
    """Read a record that :func:`write_record` wrote.

    Raises:
        FileNotFoundError: there is no such file.
        CheckpointError: the file is not a run record of this version; the message names the field.
        NumericalError: a number in it is not finite.
    """
    name = f"a run record of version {SCHEMA_VERSION}"
    return read_model(path, RunRecord, name, remedy="run `clcalib quantize` again to get one")
