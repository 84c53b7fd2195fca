"""Everything that one unit is optimised on."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, fx

from clcalib.calibrate.layout import Layout
from clcalib.calibrate.recipe import Pass, Phase, Term, needs_of
from clcalib.calibrate.store import Rows, RowState
from clcalib.calibrate.trainable import SoftWeight
from clcalib.capture.running import State
from clcalib.objectives.batch import READS, Cut, Need, UnitBatch
from clcalib.objectives.keys import KeySet


@dataclasses.dataclass(frozen=True)
class Inside:
    """The units inside a network that is optimised as a whole.

    Their float outputs are computed anew at each step, since those of all images would not fit into memory.

    Attributes:
        floats: images -> the float units' outputs, in the order of the lists.
        positions: where these units' quantized outputs stand among the outputs of the whole.
        errors: their reconstruction errors as the phase found them, above 0.
        channel_axes: where they have their channels.
        are_ends: which of them is the network's end, if it is among them.
    """

    floats: fx.GraphModule
    positions: tuple[int, ...]
    errors: tuple[float, ...]
    channel_axes: tuple[int, ...]
    are_ends: tuple[bool, ...]

    def cuts(self, outputs: State, images: State) -> tuple[Cut, ...]:
        """The units' outputs beside their targets."""
        with torch.no_grad():
            targets = self.floats(*images)
        columns = zip(self.positions, targets, self.errors, self.channel_axes, self.are_ends, strict=True)
        return tuple(Cut(outputs[position], *others) for position, *others in columns)


@dataclasses.dataclass(frozen=True)
class UnitData:
    """Inputs, targets and what lies behind the unit; frozen for the length of a phase.

    Attributes:
        quantized: the unit's input from the quantized prefix.
        floating: the unit's input from the float prefix.
        target: the float unit's output.
        target_position: which of the unit's outputs is compared with it.
        read: the frozen float remainder g: the unit's outputs -> (N, d) for each of ``read_points``, in one pass.
        read_points: the needs that ``read`` answers, in its order.
        keys: by need, g(a_F) of all images.
        float_gradient: squared gradients at the target, or None.
        channel_axis: where the target has its channels.
        inside: the units inside, where the unit is the whole network.
        dealt: how the images are dealt to shards; None where all of them are here.
    """

    quantized: RowState
    floating: RowState
    target: Rows
    target_position: int
    read: fx.GraphModule | None
    read_points: tuple[Need, ...]
    keys: Mapping[Need, KeySet]
    float_gradient: Rows | None = None
    channel_axis: int = 1
    inside: Inside | None = None
    dealt: Layout | None = None

    @property
    def layout(self) -> Layout:
        """Which images the rows are of."""
        return self.dealt or Layout.alone(len(self.target))

    def batches(
        self,
        outputs: Mapping[Pass, State],
        index: Tensor,
        progress: float | Tensor,
        soft: Sequence[SoftWeight],
        terms: Sequence[Term],
        images: State | None = None,
    ) -> dict[Pass, UnitBatch]:
        """Put together what the objectives of these terms see; what none of them needs is not computed.

        Args:
            outputs: by pass, what the unit gave for the first images of ``index``, or for all of them.
            index: the images of the step, by their rows here; objectives see their numbers among all images.
            progress: share of the phase's steps that is done.
            soft: the weights under soft rounding.
            terms: those that are computed in this step.
            images: what the unit read, where that is not what is stored; terms then look at ``cuts`` alone.
        """
        needs = needs_of(terms)
        inside = self.inside if Need.CUTS in needs else None
        with_gradient = self.float_gradient is not None and Need.FLOAT_GRADIENT in needs
        first = next(iter(outputs.values()))  # the training pass, wherever there is one
        whole = UnitBatch(
            output=first[self.target_position],
            target=self.target.take(index),
            sample_index=index + self.dealt.first if self.dealt is not None and self.dealt.first else index,
            progress=progress,
            rounding=tuple(weight.v for weight in soft) if Need.ROUNDING in needs else (),
            keys=self.keys,
            float_gradient=self.float_gradient.take(index) if with_gradient and self.float_gradient else None,
            channel_axis=self.channel_axis,
            cuts=() if inside is None else inside.cuts(first, images or tuple(r.take(index) for r in self.floating)),
        )
        found = dict[Pass, UnitBatch]()
        for name, state in outputs.items():
            output = state[self.target_position]
            readers = [term for term in terms if term.on == name and term.objective.needs & READS]
            reads = self._reads(state, readers, len(output))
            found[name] = dataclasses.replace(whole.first(len(output)), output=output, reads=reads)
        return found

    def _reads(self, outputs: State, terms: Sequence[Term], size: int) -> dict[Need, Tensor]:
        """One pass through the rest of the network for all terms, on the images of the one that wants most of them."""
        if self.read is None or not terms:
            return {}
        count = min(size, max(term.images or size for term in terms))
        # A view even of all images, where the gradients of the rest are added up by themselves: so the sum is the same
        # where other workers compute the rest.
        some = tuple(tensor.view_as(tensor) if count == size else tensor[:count] for tensor in outputs)
        return dict(zip(self.read_points, self.read(*some), strict=True))

    def in_files(self, phase: Phase) -> list[Rows]:
        """What a step of the phase reads from files."""
        quantized = self.quantized if phase.quantized_input_probability > 0 else ()
        floating = self.floating if phase.quantized_input_probability < 1 else ()
        gradient = () if self.float_gradient is None else (self.float_gradient,)
        return [rows for rows in (*quantized, *floating, self.target, *gradient) if rows.storage is None]

    def prefetch(self, phase: Phase, following: Callable[[], Tensor | None]) -> None:
        """Begin to read the images that ``following`` gives, where they are in files.

        Behind the last step it gives none: a read under way would keep a store alive, and count as disk, for longer.
        """
        in_files = self.in_files(phase)
        index = following() if in_files else None
        if index is not None:
            for rows in in_files:
                rows.prefetch(index)
