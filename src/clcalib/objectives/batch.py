"""What an objective sees: one frozen batch of tensors of one unit, and the names of what it may need."""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Mapping, Sequence
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from clcalib.errors import ArgumentError
from clcalib.objectives.keys import KeySet


class Need(enum.Enum):
    """What the walk must capture for an objective; it captures nothing that no objective asks for."""

    ROUNDING = "rounding"  # the rounding variable v of every layer under soft rounding
    FEATURES = "features"  # the unit's output behind the frozen float remainder, at the penultimate feature
    LOGITS = "logits"  # the same at the network's output
    FLOAT_GRADIENT = "float_gradient"  # squared gradient of the network's divergence in the unit's output
    CUTS = "cuts"  # outputs of all units; only in the phase over the whole network


READS = frozenset({Need.FEATURES, Need.LOGITS})  # what takes a pass through the rest of the network


@dataclasses.dataclass(frozen=True)
class Cut:
    """The output of one unit inside the network that is optimised as a whole.

    Attributes:
        output: of the quantized unit, (B, C, *spatial); carries gradients.
        target: of the float unit, same shape; never carries gradients.
        error: the unit's reconstruction error as the phase found it, above 0.
        channel_axis: which axis of both holds the channels.
        is_end: whether it is the network's own output.
    """

    output: Tensor
    target: Tensor
    error: float
    channel_axis: int = 1
    is_end: bool = False


@dataclasses.dataclass(frozen=True)
class UnitBatch:
    """One mini-batch of one unit.

    Attributes:
        output: the quantized unit's output a_Q, (B, C, *spatial); carries gradients.
        target: the float unit's output a_F, same shape; never carries gradients.
        sample_index: which calibration images these are, (B,) int64.
        progress: share of the phase's steps that is done, 0 to 1; on a GPU a tensor (), float64.
        annealed: what ``AnnealedObjective.annealed`` gives at this step, where it stands in a tensor (), float64.
        rounding: the rounding variable v of each layer, any shapes; h(v) is ``fused.soft.rectified_sigmoid``.
        reads: g(a_Q), (B, d), by need (``FEATURES``, ``LOGITS``).
        keys: the static float keys, by the same needs.
        float_gradient: squared gradients at the target, same shape, mean one.
        channel_axis: which axis of output and target holds the channels.
        cuts: the outputs of all units, where the network is optimised as a whole.
    """

    output: Tensor
    target: Tensor
    sample_index: Tensor
    progress: float | Tensor = 0.0
    annealed: Tensor | None = None
    rounding: tuple[Tensor, ...] = ()
    reads: Mapping[Need, Tensor] = dataclasses.field(default_factory=dict)
    keys: Mapping[Need, KeySet] = dataclasses.field(default_factory=dict)
    float_gradient: Tensor | None = None
    channel_axis: int = 1
    cuts: tuple[Cut, ...] = ()

    def first(self, images: int | None) -> UnitBatch:
        """The first images only (all, for None); what was read for fewer images stays as it is."""
        if images is None or images >= len(self.sample_index):
            return self
        gradient = self.float_gradient
        return dataclasses.replace(
            self,
            output=self.output[:images],
            target=self.target[:images],
            sample_index=self.sample_index[:images],
            reads={need: read[:images] for need, read in self.reads.items()},
            float_gradient=None if gradient is None else gradient[:images],
            cuts=tuple(
                dataclasses.replace(cut, output=cut.output[:images], target=cut.target[:images]) for cut in self.cuts
            ),
        )


@runtime_checkable
class Objective(Protocol):
    """A term of the loss: a batch of tensors -> a scalar, and what it needs besides output and target."""

    @property
    def needs(self) -> frozenset[Need]: ...

    def __call__(self, batch: UnitBatch) -> Tensor: ...


@runtime_checkable
class AnnealedObjective(Objective, Protocol):
    """An objective with a number of its own that follows the progress of the phase.

    On a GPU, where a step is recorded once and played back, such a number cannot be computed in Python from
    ``UnitBatch.progress``: it comes as ``UnitBatch.annealed``.
    """

    def annealed(self, progress: float) -> float | None:
        """The number; None where the objective is zero at this point, and need not be called."""


@runtime_checkable
class TrainedObjective(Objective, Protocol):
    """An objective with parameters of its own, which are trained beside the unit's and thrown away with the phase."""

    @property
    def rate(self) -> float: ...

    def for_unit(self, target: Tensor, channel_axis: int, generator: torch.Generator) -> TrainedObjective:
        """A copy with fresh parameters for a unit whose float output is like ``target`` (B, C, *spatial)."""

    def parameters(self) -> Sequence[Tensor]:
        """What is trained, at ``rate``."""


def missing_need(objective: Objective, need: Need) -> ArgumentError:
    """The error for a batch that lacks what the objective declared."""
    return ArgumentError(
        "batch",
        f"{need.value}, which {type(objective).__name__} needs",
        "a batch without it",
        "capture every need that the recipe's objectives declare",
    )
