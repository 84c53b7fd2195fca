"""The only optimisation loop.  It knows no paper: a phase tells it what to train, on what input, and by which terms."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx

from clcalib.calibrate.mixing import mix
from clcalib.calibrate.recipe import Phase, Term, needs_of
from clcalib.calibrate.schedules import SCHEDULES
from clcalib.calibrate.streams import StepStream
from clcalib.calibrate.trainable import SoftWeight, TrainableActivation
from clcalib.capture.running import State
from clcalib.errors import NumericalError
from clcalib.objectives.batch import Need, UnitBatch
from clcalib.objectives.keys import KeySet

REPORT_EVERY = 25


@dataclasses.dataclass(frozen=True)
class UnitData:
    """Everything a unit is optimised on; frozen for the length of a phase.

    Attributes:
        quantized: the unit's input from the quantized prefix.
        floating: the unit's input from the float prefix.
        target: the float unit's output, (N, ...).
        target_position: which of the unit's outputs is compared with it.
        reads: by need, the frozen float remainder g: the unit's outputs -> (N, d).
        keys: by need, g(a_F) of all images.
        float_gradient: squared gradients at the target, or None.
        channel_axis: where the target has its channels.
    """

    quantized: State
    floating: State
    target: Tensor
    target_position: int
    reads: Mapping[Need, fx.GraphModule]
    keys: Mapping[Need, KeySet]
    float_gradient: Tensor | None = None
    channel_axis: int = 1

    def batch(
        self, outputs: State, index: Tensor, progress: float, soft: Sequence[SoftWeight], needs: frozenset[Need]
    ) -> UnitBatch:
        """Put together what the objectives see."""
        return UnitBatch(
            output=outputs[self.target_position],
            target=self.target[index],
            sample_index=index,
            progress=progress,
            rounding=tuple(weight.rounding() for weight in soft) if Need.ROUNDING in needs else (),
            reads={need: g(*outputs)[0] for need, g in self.reads.items() if need in needs},
            keys=self.keys,
            float_gradient=None if self.float_gradient is None else self.float_gradient[index],
            channel_axis=self.channel_axis,
        )


@torch.enable_grad()  # the caller may be under no_grad
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
        body: the unit with ``SoftWeight`` and ``TrainableActivation`` modules in it.
        data: its inputs and targets.
        phase: what to do.
        random: shared with the modules of ``body``.
        scales: the factor of each of the phase's terms, its weight included.
        report: told of the losses every now and then.

    Raises:
        NumericalError: the loss stopped being finite.
    """
    soft = [module for module in body.modules() if isinstance(module, SoftWeight)]
    optimizer, scheduled = _optimizer(body, soft, phase)
    if optimizer is None:
        return
    count, shown = len(data.target), dict[str, float]()
    for step in range(phase.steps):
        generator = random.advance(step)
        index = torch.randperm(count, generator=generator, device=generator.device)[: phase.batch_size]
        inputs = _unit_input(data, index, phase.quantized_input_probability, generator)
        outputs = body(*inputs)
        due = [(term, scale) for term, scale in zip(phase.terms, scales, strict=True) if step % term.interval == 0]
        batch = data.batch(outputs, index, step / phase.steps, soft, needs_of(term for term, _ in due))
        losses = [term.objective(batch) * scale for term, scale in due]
        total = torch.stack([loss * term.interval for (term, _), loss in zip(due, losses, strict=True)]).sum()
        optimizer.zero_grad(set_to_none=True)
        total.backward()  # type: ignore[no-untyped-call]
        for group in scheduled:
            group["lr"] = group["initial_lr"] * SCHEDULES[group["schedule"]](step, phase.steps)
        optimizer.step()
        if step % REPORT_EVERY == 0 or step == phase.steps - 1:
            shown |= {_name(term): float(loss.detach()) for (term, _), loss in zip(due, losses, strict=True)}
            _check_finite(shown, phase, step)
            report(step, shown)


def _name(term: Term) -> str:
    return type(term.objective).__name__


def _optimizer(
    body: fx.GraphModule, soft: list[SoftWeight], phase: Phase
) -> tuple[torch.optim.Optimizer | None, list[dict[str, Any]]]:
    groups: list[dict[str, Any]] = []
    if phase.rounding_rate is not None and soft:
        rounding = [weight.v for weight in soft]
        groups.append(_group(rounding, phase.rounding_rate, phase.rounding_schedule))
    activations = [m.scale for m in body.modules() if isinstance(m, TrainableActivation) and m.scale.requires_grad]
    if phase.activation_rate is not None and activations:
        groups.append(_group(activations, phase.activation_rate, "cosine"))
    if not groups:
        return None, []
    optimizer = torch.optim.Adam(groups, fused=True)
    return optimizer, optimizer.param_groups


def _group(parameters: list[torch.nn.Parameter], rate: float, schedule: str) -> dict[str, Any]:
    return {"params": parameters, "lr": rate, "initial_lr": rate, "schedule": schedule}


def _unit_input(data: UnitData, index: Tensor, probability: float, generator: torch.Generator) -> State:
    if probability >= 1:
        return tuple(tensor[index] for tensor in data.quantized)
    if probability <= 0:
        return tuple(tensor[index] for tensor in data.floating)
    pairs = zip(data.quantized, data.floating, strict=True)
    return tuple(mix(quantized[index], floating[index], probability, generator) for quantized, floating in pairs)


def _check_finite(values: Mapping[str, float], phase: Phase, step: int) -> None:
    for name, value in values.items():
        if not value < float("inf"):
            raise NumericalError(
                f"{name} became {value} at step {step} of phase {phase.name!r}; "
                "try a smaller rounding_rate, or look for extreme values in the network's activations"
            )
