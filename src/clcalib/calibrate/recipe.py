"""A method is data: a recipe is a tuple of phases, and a phase says what is optimised, on what, and how fast."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any, Literal

from clcalib.calibrate.schedules import SCHEDULES
from clcalib.data.augmentation import check_names
from clcalib.errors import ArgumentError
from clcalib.objectives.batch import Need, Objective

Pass = Literal["training", "quantized"]
PASSES: tuple[Pass, ...] = ("training", "quantized")
OWN = frozenset({Need.CUTS, Need.ROUNDING})  # what a step computes from its own images and weights


@dataclasses.dataclass(frozen=True)
class Term:
    """One summand of a phase's loss.

    Args:
        objective: what it measures.
        weight: multiplies it.
        is_relative: the weight is meant relative to the host's own terms: the term is scaled so that, at weight 1, it
            is as large as they are for the unit as the phase finds it, the first one at the recipe's ``start``.  So one
            weight fits all units and networks.
        interval: the term is computed at every ``interval``-th step only and weighs ``interval`` times as much there:
            the same gradient on average, for a fraction of the cost.
        images: the term looks at this many images of the batch only; None is all.
        on: which forward pass of the unit it looks at: ``"training"``, on the mixed input and with dropped activation
            quantizers, or ``"quantized"``, a second one on the quantized prefix alone with nothing dropped.  All terms
            on one pass share it, and one pass through the rest of the network.
    """

    objective: Objective
    weight: float = 1.0
    is_relative: bool = False
    interval: int = 1
    images: int | None = None
    on: Pass = "training"

    def __post_init__(self) -> None:
        if self.on not in PASSES:
            raise ArgumentError("on", f"one of {', '.join(PASSES)}", repr(self.on))
        if self.images is not None and (isinstance(self.images, bool) or self.images < 2):
            raise ArgumentError("images", "at least 2 images of the batch, or None for all", self.images)
        if isinstance(self.interval, bool) or not isinstance(self.interval, int) or self.interval < 1:
            raise ArgumentError("interval", "a whole number of steps above 0", repr(self.interval))


def needs_of(terms: Iterable[Term]) -> frozenset[Need]:
    """Everything that the terms' objectives need."""
    return frozenset[Need]().union(*(term.objective.needs for term in terms))


@dataclasses.dataclass(frozen=True)
class Phase:
    """One optimisation of every unit.

    Args:
        name: shown in displays.
        steps: optimiser steps for each unit.
        terms: the loss.
        batch_size: images a step, drawn without replacement.
        rounding: how weights are rounded while they are trained, softly or at each step with a straight-through
            gradient; "fixed" leaves their codes as they are, for phases that train their scales alone.
        rounding_rate: Adam's rate for the rounding, None to leave the weights as they are.
        rounding_schedule: how that rate goes over the steps, a name in ``SCHEDULES``.
        weight_scale_rate: Adam's rate for the weights' scales beside the rounding, as a share of their first value,
            with a cosine schedule to zero; None to leave them.
        start_share: how far the rounding starts from the float weight, 0, towards the codes that the phase finds, 1.
        activation_rate: Adam's rate for activation scales, with a cosine schedule to zero; None to leave them.
        has_relative_activation_rate: that rate is a share of each scale's first value, and so fits all widths.
        bias_rate: Adam's rate for the biases of quantized layers, as a share of the norm of the output channel's
            weight, with a cosine schedule to zero; None to leave them.
        quantized_input_probability: share of the unit's input elements that come from the quantized prefix.
        activations: whether activations inside the unit are quantized in this phase.
        keep_quantized_probability: probability that an activation element inside the unit keeps its quantized value.
        has_scale_gradient_factor: LSQ's factor 1 / sqrt(elements * q_max) on the scale's gradient.
        augmentation: operations of ``data.augmentation`` that every step does anew to its images; in a phase over the
            whole network alone, since what units read are no images.
    """

    name: str
    steps: int
    terms: tuple[Term, ...]
    batch_size: int = 32
    rounding: Literal["soft", "straight_through", "fixed"] = "soft"
    rounding_rate: float | None = None
    rounding_schedule: str = "constant"
    weight_scale_rate: float | None = None
    start_share: float = 0.0
    activation_rate: float | None = None
    has_relative_activation_rate: bool = False
    bias_rate: float | None = None
    quantized_input_probability: float = 1.0
    activations: Literal["float", "quantized"] = "quantized"
    keep_quantized_probability: float = 1.0
    has_scale_gradient_factor: bool = True
    augmentation: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ArgumentError(name, "a whole number above 0", repr(value))
        if self.terms and all(term.interval > 1 for term in self.terms):
            raise ArgumentError("terms", "one with interval 1, so that every step has a loss", "intervals above 1 only")
        for name in ("quantized_input_probability", "keep_quantized_probability"):
            if not 0 <= getattr(self, name) <= 1:
                raise ArgumentError(name, "a probability from 0 to 1", getattr(self, name))
        for name in ("rounding_rate", "weight_scale_rate", "activation_rate", "bias_rate"):
            value = getattr(self, name)
            if value is not None and not 0 < value < float("inf"):
                raise ArgumentError(name, "a positive rate, or None to leave the parameters alone", value)
        self._check_rounding()
        self._check_augmentation()
        if self.activations == "float" and any(term.on == "quantized" for term in self.terms):
            expected = 'terms on the pass "training" in a phase with float activations'
            raise ArgumentError("terms", expected, 'one on "quantized"', 'quantize the activations, or leave out "on"')
        if not 0 <= self.start_share < 1:
            raise ArgumentError("start_share", "a share, at least 0 and below 1", self.start_share)
        if self.rounding_schedule not in SCHEDULES:
            raise ArgumentError("rounding_schedule", f"one of {', '.join(SCHEDULES)}", repr(self.rounding_schedule))

    def _check_rounding(self) -> None:
        if self.rounding not in ("soft", "straight_through", "fixed"):
            raise ArgumentError("rounding", "soft, straight_through or fixed", repr(self.rounding))
        if self.rounding == "fixed" and self.rounding_rate is not None:
            raise ArgumentError("rounding_rate", 'None with rounding="fixed"', self.rounding_rate)
        if self.rounding != "fixed" and self.weight_scale_rate is not None and self.rounding_rate is None:
            hint = 'give rounding_rate or rounding="fixed", or leave the scales alone'
            raise ArgumentError("weight_scale_rate", "None where no rounding is trained", self.weight_scale_rate, hint)
        if self.rounding != "soft" and Need.ROUNDING in self.needs:
            hint = "leave out the rounding penalty"
            raise ArgumentError("terms", f"none that needs soft rounding, with rounding={self.rounding!r}", "one", hint)

    def _check_augmentation(self) -> None:
        check_names("augmentation", self.augmentation)
        stored = [term for term in self.terms if not 0 < len(term.objective.needs & OWN) == len(term.objective.needs)]
        if self.augmentation and stored:
            expected, got = "none that compares with values stored before", type(stored[0].objective).__name__
            raise ArgumentError("terms", f"{expected}, with augmentation", got, "NetworkReconstruction does not")

    @property
    def needs(self) -> frozenset[Need]:
        return needs_of(self.terms)


@dataclasses.dataclass(frozen=True)
class Correction:
    """PD-Quant's correction of distributions (``calibrate/correction.py``), once for each unit before its phases.

    Args:
        steps: Adam steps for each batch of the unit's float input.
        rate: Adam's rate; it falls where the loss stops falling.
        strength: lambda_c: the larger, the further the input may move.  0.02 ResNet, 0.01 RegNet, 0.005 MobileNetV2,
            0.001 MNASNet.
        batch_size: images that are corrected together.
    """

    steps: int = 500
    rate: float = 1e-3
    strength: float = 0.02
    batch_size: int = 32

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ArgumentError(name, "a whole number above 0", repr(value))
        for name in ("rate", "strength"):
            if not 0 < getattr(self, name) < float("inf"):
                raise ArgumentError(name, "a positive number", getattr(self, name))


@dataclasses.dataclass(frozen=True)
class Recipe:
    """A host method, with or without the contrastive term.

    Args:
        name: as in ``RECIPES``, with ``+contrastive`` where that was added to it.
        unit: what is reconstructed at a time.
        phases: run one after the other in each unit; none means nearest rounding.
        start: the codes that each unit starts from: those of nearest rounding, or of error feedback on what the units
            before it send into it.
        last_phase: run once, on the network as a whole, when all units are done; see ``with_last_phase``.
        skips_first_unit: leave the stem at nearest rounding (BRECQ, GENIE-M).
        correction: how the float inputs of units are brought nearer to the statistics of batch norm; None leaves them.
        contrastive: the arguments of ``with_contrastive``, for the record and for phases that are added later, and as
            ``resolved`` what they came to in each phase: its name, ``interval``, ``images`` and ``on`` of the term.
    """

    name: str
    unit: Literal["layer", "block"] = "block"
    phases: tuple[Phase, ...] = ()
    start: Literal["nearest", "error_feedback"] = "nearest"
    last_phase: Phase | None = None
    skips_first_unit: bool = False
    correction: Correction | None = None
    contrastive: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        if self.start not in ("nearest", "error_feedback"):
            raise ArgumentError("start", "nearest or error_feedback", repr(self.start))
        if any(phase.augmentation for phase in self.phases):
            hint = "augment the calibration images instead (augmented, --augment)"
            raise ArgumentError("phases", "no augmentation in the units' phases", "one with it", hint)

    @property
    def all_phases(self) -> tuple[Phase, ...]:
        """Those of the units, then the last one."""
        return self.phases if self.last_phase is None else (*self.phases, self.last_phase)

    @property
    def steps_per_unit(self) -> int:
        return sum(phase.steps for phase in self.phases)

    @property
    def needs(self) -> frozenset[Need]:
        return frozenset[Need]().union(*(phase.needs for phase in self.all_phases))
