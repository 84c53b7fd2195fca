"""The only optimisation loop.  It knows no paper: a phase tells it what to train, on what input, and by which terms."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from torch import Tensor, fx

from clcalib.calibrate.adam import Adam
from clcalib.calibrate.lower import input_dtypes
from clcalib.calibrate.mixing import mix_rows
from clcalib.calibrate.recipe import Pass, Phase, Term
from clcalib.calibrate.schedules import SCHEDULES
from clcalib.calibrate.streams import StepStream
from clcalib.calibrate.trainable import SoftWeight, TrainableActivation, TrainableWeight
from clcalib.calibrate.unit_data import UnitData
from clcalib.capture.running import State
from clcalib.errors import NumericalError
from clcalib.objectives.batch import TrainedObjective

REPORT_EVERY = 25


@contextlib.contextmanager
def repeatable_convolutions() -> Iterator[None]:
    """On a GPU cuDNN may choose algorithms that add up in any order; the caller's choice comes back at the end."""
    before = torch.backends.cudnn.deterministic
    torch.backends.cudnn.deterministic = True
    try:
        yield
    finally:
        torch.backends.cudnn.deterministic = before


@torch.enable_grad()  # the caller may be under no_grad
@repeatable_convolutions()
def optimise(
    body: fx.GraphModule,
    data: UnitData,
    phase: Phase,
    random: StepStream,
    *,
    scales: Sequence[float],
    report: Callable[[int, Mapping[str, float]], None],
) -> None:
    """Run one phase on one unit; the trainable modules inside ``body`` hold the result.

    Args:
        body: the unit with ``TrainableWeight`` and ``TrainableActivation`` modules in it.
        data: its inputs and targets.
        phase: what to do.
        random: shared with the modules of ``body``.
        scales: the factor of each of the phase's terms, its weight included.
        report: told of the losses every now and then: of each term, that of the last step at which it was due.

    Raises:
        NumericalError: the loss stopped being finite.
    """
    soft = [module for module in body.modules() if isinstance(module, SoftWeight)]
    trained = _trained(body, phase)
    if not trained:
        return
    trained += _trained_objectives(phase)
    count, latest = len(data.target), dict[str, Tensor]()
    unit = _Unit(body, data, phase.quantized_input_probability, random, input_dtypes(body))
    for step in range(phase.steps):
        random.advance(step)
        index = _on_device(random.batch(count, phase.batch_size), data.target.device)
        due = [(term, scale) for term, scale in zip(phase.terms, scales, strict=True) if step % term.interval == 0]
        terms = [term for term, _ in due]
        batches = data.batches(unit.passes(index, terms), index, step / phase.steps, soft, terms)
        data.prefetch(phase, random)
        losses = [term.objective(batches[term.on].first(term.images)) * scale for term, scale in due]
        total = functools.reduce(torch.add, (loss * term.interval for (term, _), loss in zip(due, losses, strict=True)))
        for group in trained:
            group.optimizer.forget_gradients()
        total.backward()  # type: ignore[no-untyped-call]
        for group in trained:
            group.optimizer.step(group.rate * group.schedule(step, phase.steps))
        # Tensors, so that no other step than those below waits for a number.
        latest |= {_name(term): loss.detach() for (term, _), loss in zip(due, losses, strict=True)}
        if step % REPORT_EVERY == 0 or step == phase.steps - 1:
            shown = {name: float(loss) for name, loss in latest.items()}
            _check_finite(shown, phase, step)
            report(step, shown)


def _on_device(index: Tensor, device: torch.device) -> Tensor:
    """A copy from pinned memory takes its place in the device's queue; from other memory the host would wait for it."""
    if device.type != "cuda":
        return index.to(device)
    return index.pin_memory().to(device, non_blocking=True)


def _name(term: Term) -> str:
    return type(term.objective).__name__


@dataclasses.dataclass(frozen=True)
class _Trained:
    """Parameters that are trained at one rate, on one schedule."""

    optimizer: Adam
    rate: float
    schedule: Callable[[int, int], float]


def _trained(body: fx.GraphModule, phase: Phase) -> list[_Trained]:
    groups = []
    weights = [module for module in body.modules() if isinstance(module, TrainableWeight)]
    if phase.rounding_rate is not None and weights:
        rounding = Adam([weight.rounding for weight in weights])
        groups.append(_Trained(rounding, phase.rounding_rate, SCHEDULES[phase.rounding_schedule]))
    factors = [weight.scale_factor for weight in weights if weight.scale_factor is not None]
    if phase.weight_scale_rate is not None and factors:
        groups.append(_Trained(Adam(factors), phase.weight_scale_rate, SCHEDULES["cosine"]))
    activations = [m.scale for m in body.modules() if isinstance(m, TrainableActivation) and m.scale.requires_grad]
    if phase.activation_rate is not None and activations:
        groups.append(_Trained(Adam(activations), phase.activation_rate, SCHEDULES["cosine"]))
    return groups


def _trained_objectives(phase: Phase) -> list[_Trained]:
    objectives = [term.objective for term in phase.terms if isinstance(term.objective, TrainedObjective)]
    return [_Trained(Adam(own.parameters()), own.rate, SCHEDULES["constant"]) for own in objectives]


def with_own_parameters(phase: Phase, target: Tensor, channel_axis: int, generator: torch.Generator) -> Phase:
    """The phase with fresh parameters in those of its objectives that train some; ``target`` is a row of the unit's."""

    def fresh(term: Term) -> Term:
        if not isinstance(term.objective, TrainedObjective):
            return term
        return dataclasses.replace(term, objective=term.objective.for_unit(target, channel_axis, generator))

    return dataclasses.replace(phase, terms=tuple(fresh(term) for term in phase.terms))


@dataclasses.dataclass(frozen=True)
class _Unit:
    """The unit, and what it reads."""

    body: fx.GraphModule
    data: UnitData
    quantized_input_probability: float
    random: StepStream
    dtypes: tuple[torch.dtype, ...]

    def passes(self, index: Tensor, terms: Sequence[Term]) -> dict[Pass, State]:
        """Every pass that a term looks at, the quantized one on the first images, as many as its terms want."""
        found = dict[Pass, State]()
        if any(term.on == "training" for term in terms):
            found["training"] = self._forward(index)
        counts = [term.images or len(index) for term in terms if term.on == "quantized"]
        if counts:
            with self.random.undropped():
                found["quantized"] = self._forward(index[: max(counts)])
        return found

    def _forward(self, index: Tensor) -> State:
        columns = zip(self.data.quantized, self.data.floating, self.dtypes, strict=True)
        inputs = [
            mix_rows(quantized, floating, index, self.random.draw(self.quantized_input_probability), dtype)
            for quantized, floating, dtype in columns
        ]
        outputs: State = self.body(*inputs)
        return outputs


def _check_finite(values: Mapping[str, float], phase: Phase, step: int) -> None:
    for name, value in values.items():
        if not value < float("inf"):
            raise NumericalError(
                f"{name} became {value} at step {step} of phase {phase.name!r}; "
                "try a smaller rounding_rate, or look for extreme values in the network's activations"
            )
