"""One step of a phase on one unit, with all that changes from step to step as its arguments."""

from __future__ import annotations

import dataclasses
import functools
from collections import Counter
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, fx

from clcalib.calibrate.adam import Adam
from clcalib.calibrate.lower import input_dtypes, module_of
from clcalib.calibrate.mixing import mix_rows
from clcalib.calibrate.recipe import Pass, Phase, Term
from clcalib.calibrate.schedules import SCHEDULES
from clcalib.calibrate.streams import StepStream
from clcalib.calibrate.trainable import SoftWeight, TrainableActivation, TrainableBias, TrainableWeight
from clcalib.calibrate.unit_data import UnitData
from clcalib.capture.running import State
from clcalib.data.augmentation import changed
from clcalib.objectives.batch import AnnealedObjective, TrainedObjective, UnitBatch


@dataclasses.dataclass(frozen=True)
class Trained:
    """Parameters that are trained at one rate, on one schedule."""

    optimizer: Adam
    rate: float
    schedule: Callable[[int, int], float]


@dataclasses.dataclass(frozen=True)
class Step:
    """A phase on one unit: what it trains, on what, and by which terms.

    Attributes:
        body: the unit with ``TrainableWeight`` and ``TrainableActivation`` modules in it.
        data: its inputs and targets.
        phase: what to do.
        random: shared with the modules of ``body``.
        scales: the factor of each of the phase's terms, its weight included.
        trained: the parameters; none where the phase has nothing to train in this unit.
        soft: the weights under soft rounding.
        dtypes: of the unit's inputs.
        following: gives the images that are read next, or None behind the last; by default those of the next step.
    """

    body: fx.GraphModule
    data: UnitData
    phase: Phase
    random: StepStream
    scales: Sequence[float]
    trained: Sequence[Trained]
    soft: Sequence[SoftWeight]
    dtypes: Sequence[torch.dtype]
    following: Callable[[], Tensor | None] | None = None

    @classmethod
    def of(
        cls, body: fx.GraphModule, data: UnitData, phase: Phase, random: StepStream, *, scales: Sequence[float]
    ) -> Step:
        """The step, with optimisers that have not moved yet."""
        soft = [module for module in body.modules() if isinstance(module, SoftWeight)]
        own = _in_unit(body, phase)
        trained = [*own, *_in_objectives(phase)] if own else []
        return cls(body, data, phase, random, scales, trained, soft, input_dtypes(body))

    @property
    def batch_size(self) -> int:
        """Images of a step."""
        return min(self.phase.batch_size, len(self.data.target))

    @property
    def most_draws(self) -> int:
        """As many masks as a step can draw, or more."""
        quantizers = [
            node for node in self.body.graph.nodes if isinstance(module_of(self.body, node), TrainableActivation)
        ]
        return len(self.dtypes) + len(quantizers)

    def due(self, number: int) -> tuple[int, ...]:
        """The places of the terms that are computed in this step."""
        return tuple(at for at, term in enumerate(self.phase.terms) if number % term.interval == 0)

    def losses(
        self,
        due: Sequence[int],
        index: Tensor,
        progress: float | Tensor,
        annealed: Mapping[int, Tensor | None] | None = None,
    ) -> list[Tensor]:
        """The terms' losses; their gradients are put to the parameters.

        Args:
            due: the places of the terms that are computed.
            index: the images  # shape: (B,) int64
            progress: share of the phase's steps that is done.
            annealed: by the place of an ``AnnealedObjective`` its number (), None where it is zero now; where this is
                left out, the objectives have it from ``progress``.
        """
        terms = [self.phase.terms[at] for at in due]
        images = self._changed(index) if self.phase.augmentation else None
        passes = self._passes(index, terms, images)
        batches = self.data.batches(passes, index, progress, self.soft, terms, images)
        self.data.prefetch(self.phase, self.following or self._next_step)
        losses = [self._loss(at, batches, annealed or {}) for at in due]
        total = functools.reduce(torch.add, map(_scaled, losses, (term.interval for term in terms)))
        self.forget_gradients()
        if total.requires_grad or not self._is_idle(due, progress, annealed):
            total.backward()  # type: ignore[no-untyped-call]
        return [loss.detach() for loss in losses]

    def _is_idle(
        self, due: Sequence[int], progress: float | Tensor, annealed: Mapping[int, Tensor | None] | None
    ) -> bool:
        """Whether every term is a constant zero now, as a rounding penalty alone is while it warms up."""
        known = annealed_at(self.phase, due, float(progress)) if annealed is None else annealed
        return all(known.get(at, 0.0) is None for at in due)

    def forget_gradients(self) -> None:
        """Give the gradients' memory back."""
        for group in self.trained:
            group.optimizer.forget_gradients()

    def rates(self, number: int) -> list[float]:
        """By group, Adam's rate in this step."""
        return [group.rate * group.schedule(number, self.phase.steps) for group in self.trained]

    def _next_step(self) -> Tensor | None:
        if self.random.step + 1 >= self.phase.steps:
            return None
        return self.random.batch(len(self.data.target), self.phase.batch_size, ahead=1)

    def _loss(self, at: int, batches: Mapping[Pass, UnitBatch], annealed: Mapping[int, Tensor | None]) -> Tensor:
        term, scale = self.phase.terms[at], self.scales[at]
        batch = batches[term.on].first(term.images)
        if at in annealed:
            if annealed[at] is None:
                return torch.zeros((), device=batch.output.device)
            batch = dataclasses.replace(batch, annealed=annealed[at])
        return _scaled(term.objective(batch), scale)

    def _changed(self, index: Tensor) -> State:
        """The step's images after the phase's augmentation, of a kind of its own in each step."""
        random, names = self.random, self.phase.augmentation
        rows = (rows.take(index) for rows in self.data.quantized)  # at the network's start both are the images
        return tuple(changed(images, names, seed=random.seed(), number=random.step) for images in rows)

    def _passes(self, index: Tensor, terms: Sequence[Term], images: State | None) -> dict[Pass, State]:
        """Every pass that a term looks at, the quantized one on the first images, as many as its terms want."""
        found = dict[Pass, State]()
        if any(term.on == "training" for term in terms):
            found["training"] = self._forward(index, images)
        counts = [term.images or len(index) for term in terms if term.on == "quantized"]
        if counts:
            with self.random.undropped():
                found["quantized"] = self._forward(index[: max(counts)], images)
        return found

    def _forward(self, index: Tensor, images: State | None) -> State:
        if images is not None:
            pairs = zip(images, self.dtypes, strict=True)
            changed_outputs: State = self.body(*(each[: len(index)].to(dtype) for each, dtype in pairs))
            return changed_outputs
        columns = zip(self.data.quantized, self.data.floating, self.dtypes, strict=True)
        inputs = [
            mix_rows(quantized, floating, index, self.random.draw(self.phase.quantized_input_probability), dtype)
            for quantized, floating, dtype in columns
        ]
        outputs: State = self.body(*inputs)
        return outputs


def _scaled(loss: Tensor, factor: float) -> Tensor:
    return loss if factor == 1 else loss * factor  # a factor of one would cost two launches for nothing


def names_of(phase: Phase) -> list[str]:
    """What each term is reported as; of several with one name the second is numbered 2, and so on."""
    seen, names = Counter[str](), []
    for term in phase.terms:
        name = type(term.objective).__name__
        seen[name] += 1
        names.append(name if seen[name] == 1 else f"{name} {seen[name]}")
    return names


def annealed_at(phase: Phase, due: Sequence[int], progress: float) -> dict[int, float | None]:
    """By the place of an ``AnnealedObjective`` among the terms that are due, its number at this point of the phase."""
    objectives = [(at, phase.terms[at].objective) for at in due]
    return {at: own.annealed(progress) for at, own in objectives if isinstance(own, AnnealedObjective)}


def _in_unit(body: fx.GraphModule, phase: Phase) -> list[Trained]:
    groups = []
    weights = [module for module in body.modules() if isinstance(module, TrainableWeight)]
    if phase.rounding_rate is not None and weights:
        rounding = Adam([weight.rounding for weight in weights if weight.rounding is not None])
        groups.append(Trained(rounding, phase.rounding_rate, SCHEDULES[phase.rounding_schedule]))
    factors = [weight.scale_factor for weight in weights if weight.scale_factor is not None]
    if phase.weight_scale_rate is not None and factors:
        groups.append(Trained(Adam(factors), phase.weight_scale_rate, SCHEDULES["cosine"]))
    activations = [m.scale for m in body.modules() if isinstance(m, TrainableActivation) and m.scale.requires_grad]
    if phase.activation_rate is not None and activations:
        parts = [[scale] for scale in activations] if phase.has_relative_activation_rate else [activations]
        for scales in parts:
            unit = scales[0].detach().abs().max().item() if phase.has_relative_activation_rate else 1.0
            groups.append(Trained(Adam(scales), phase.activation_rate * unit, SCHEDULES["cosine"]))
    offsets = [module.offset for module in body.modules() if isinstance(module, TrainableBias)]
    if phase.bias_rate is not None and offsets:
        groups.append(Trained(Adam(offsets), phase.bias_rate, SCHEDULES["cosine"]))
    return groups


def _in_objectives(phase: Phase) -> list[Trained]:
    objectives = [term.objective for term in phase.terms if isinstance(term.objective, TrainedObjective)]
    return [Trained(Adam(own.parameters()), own.rate, SCHEDULES["constant"]) for own in objectives]
