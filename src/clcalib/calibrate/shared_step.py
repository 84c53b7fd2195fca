"""The steps of a phase whose images are in several shards: gradients by shard, exchanged, added up in their order.

A step of a worker: of each of its shards forward and backward on the shard's part of the batch; then that gradient is
on its way to the others while the next shard is computed.  When all are there, each worker adds up the same numbers in
the same order and moves its own copy of the parameters, so that all copies stay the same, bit for bit.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager

import torch
from torch import Tensor

from clcalib.calibrate.latest import LatestLosses
from clcalib.calibrate.layout import Layout
from clcalib.calibrate.recipe import Phase
from clcalib.calibrate.shares import shares
from clcalib.calibrate.step import Step
from clcalib.calibrate.streams import StepStream
from clcalib.calibrate.trainable import TrainableActivation

Wait = Callable[[], list[Tensor]]  # for the tensors of all workers


class SharedSteps:
    """Steps whose numbers are Python's, over the shards of a team.

    Args:
        step: the phase on the unit, as if all images were here.
    """

    def __init__(self, step: Step) -> None:
        self._step, self._layout = step, step.data.layout
        self._shares = shares(step.phase, self._layout)
        self._batches = _Batches(step.random, self._layout, [share.phase for share in self._shares])
        self._activations = [module for module in step.body.modules() if isinstance(module, TrainableActivation)]
        self._own = [
            dataclasses.replace(
                step,
                phase=share.phase,
                # A loss is a mean over images, so its sum over shards with these factors is that of all images.
                scales=[scale * factor for scale, factor in zip(step.scales, share.factors, strict=True)],
                following=functools.partial(self._batches.following, at),
            )
            for at, share in enumerate(self._shares)
        ]
        parameters = [parameter for group in step.trained for parameter in group.optimizer.parameters]
        self._sum, *self._rows = [_Row(parameters, len(step.phase.terms)) for _ in range(1 + len(self._own))]
        self._seen = LatestLosses(step.phase)

    def running(self) -> AbstractContextManager[object]:
        """Around all steps."""
        return contextlib.nullcontext()

    def run(self, number: int) -> None:
        """Do one step."""
        step, due, waits = self._step, self._step.due(number), list[Wait]()
        for at, (own, row) in enumerate(zip(self._own, self._rows, strict=True)):
            own.random.advance(number, self._layout.team.own[at])
            for activation in self._activations:
                activation.share = self._shares[at].images
            index = self._batches.rows(at).to(step.data.target.device)
            row.write(due, own.losses(due, index, number / step.phase.steps))
            waits.append(self._layout.team.exchange.begin(row.whole))
        self._sum.add_up(self._in_order([wait() for wait in waits]))
        self._sum.give_gradients()
        for group, rate in zip(step.trained, step.rates(number), strict=True):
            group.optimizer.step(rate)
        self._seen.add(due, self._sum.losses(due))

    def losses(self) -> dict[str, float]:
        """Of each term, the loss of the last step at which it was due, over all shards; see ``LatestLosses``."""
        return self._seen.losses()

    def _in_order(self, found: Sequence[list[Tensor]]) -> list[Tensor]:
        """The rows of all shards; ``found`` has those of all workers for each own shard."""
        return [by_rank[rank] for rank in range(self._layout.team.workers) for by_rank in found]


@dataclasses.dataclass(frozen=True)
class _Batches:
    """Which rows the steps look at; it refers to no store, which would then outlive the phase.

    Attributes:
        random: of the steps.
        layout: where the shards are.
        phases: what is done in each of the own ones.
    """

    random: StepStream
    layout: Layout
    phases: Sequence[Phase]

    def rows(self, at: int, ahead: int = 0) -> Tensor:
        """Those of the present step, or of a later one, in the own shard ``at``."""
        count, shard = self.layout.own_counts[at], self.layout.team.own[at]
        return self.random.batch(count, self.phases[at].batch_size, ahead, shard) + self.layout.starts[at]

    def following(self, at: int) -> Tensor | None:
        """Those that come behind the shard ``at``: of the next one, or of the next step's first one."""
        ahead, place = divmod(at + 1, len(self.phases))
        return self.rows(place, ahead) if self.random.step + ahead < self.phases[at].steps else None


class _Row:
    """A row of float32 numbers: the gradients of all parameters, which of them have one, and the terms' losses.

    Args:
        parameters: what is trained.
        terms: their number.

    Attributes:
        whole: the row, zeros at first.
    """

    def __init__(self, parameters: Sequence[Tensor], terms: int) -> None:
        self._parameters, sizes = parameters, [parameter.numel() for parameter in parameters]
        self.whole = torch.zeros(sum(sizes) + len(sizes) + terms, device=parameters[0].device)
        *pieces, self._flags, self._terms = torch.split(self.whole, [*sizes, len(sizes), terms])
        # As the parameters lie in memory, so that nothing is moved to another order.
        self._parts = [
            piece.as_strided(parameter.shape, torch.empty_like(parameter).stride(), piece.storage_offset())
            for piece, parameter in zip(pieces, parameters, strict=True)
        ]

    @torch.no_grad()
    def write(self, due: Sequence[int], losses: Sequence[Tensor]) -> None:
        """Put in the parameters' gradients, and the losses of the terms that are due."""
        gradients = [parameter.grad for parameter in self._parameters]
        given = [gradient for gradient in gradients if gradient is not None]
        if len(given) < len(gradients):
            self.whole.zero_()
        parts = [part for part, gradient in zip(self._parts, gradients, strict=True) if gradient is not None]
        torch._foreach_copy_(parts, given)
        if len(given) == len(gradients):
            self._flags.fill_(1)
        else:
            self._flags.copy_(torch.tensor([float(gradient is not None) for gradient in gradients]))
        self._terms.zero_()
        for at, loss in zip(due, losses, strict=True):
            self._terms[at] = loss

    @torch.no_grad()
    def add_up(self, rows: Sequence[Tensor]) -> None:
        """Become the sum of rows, added in their order."""
        self.whole.copy_(rows[0])
        for row in rows[1:]:
            self.whole += row

    def give_gradients(self) -> None:
        """Give each parameter its gradient in a sum of rows, in this row's memory; none where no shard had one."""
        for parameter, part, flag in zip(self._parameters, self._parts, self._flags.tolist(), strict=True):
            parameter.grad = part if flag > 0 else None

    def losses(self, due: Sequence[int]) -> list[Tensor]:
        """The losses in a sum of rows."""
        return [self._terms[at].clone() for at in due]
