"""Pieces whose units are with several workers: one asks, the others compute their parts, forward and backward."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn

from clcalib.calibrate.fuse import fuse
from clcalib.capture.chain import Chain
from clcalib.placed.division import Part, divide, joined
from clcalib.team.line import Line
from clcalib.team.messages import Message

RUN, BACK = "run", "back"
_DTYPES = {str(dtype): dtype for dtype in (torch.float32, torch.bfloat16)}


@dataclasses.dataclass(frozen=True)
class Asked:
    """The pieces of one of a run's chains, where this worker asks for the parts of others: ``Chain.placed``.

    Attributes:
        name: of the chain, by which all workers know it.
        line: this worker's.
        workers: by the number of a unit, who has it.
    """

    name: str
    line: Line
    workers: Sequence[int]

    def __call__(
        self, piece: fx.GraphModule, inputs: Sequence[str], outputs: Sequence[str], dtype: torch.dtype | None
    ) -> fx.GraphModule:
        """See ``Placed``."""
        parts = divide(piece, self.workers)
        if all(part.worker == self.line.rank for part in parts):
            return piece
        what = {
            "chain": self.name,
            "inputs": list(inputs),
            "outputs": list(outputs),
            "dtype": None if dtype is None else str(dtype),
        }
        modules = [
            part.module if part.worker == self.line.rank else RemotePart(self.line, part, what) for part in parts
        ]
        return joined(piece, parts, modules)


class RemotePart(nn.Module):
    """A part that another worker computes.

    Args:
        line: this worker's.
        part: which one.
        what: says which piece it is of.
    """

    def __init__(self, line: Line, part: Part, what: Mapping[str, Any]) -> None:
        super().__init__()
        self._line, self._worker, self._what = line, part.worker, what
        self._handed = [part.inputs.index(name) for name in part.handed]

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """What the part makes, and what it hands through."""
        if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in inputs):
            outputs: tuple[Tensor, ...] = _Remote.apply(self, *inputs)
            return outputs
        made = self.ask(RUN, {**self._what, "gradients": None}, inputs)
        return (*_present(made.tensors), *self.handed(inputs))

    def handed(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        """Of the inputs those that are handed through."""
        return [inputs[position] for position in self._handed]

    def run(self, inputs: Sequence[Tensor], gradients: Sequence[bool]) -> Message:
        """Forward, for a backward pass to the inputs that are said."""
        return self.ask(RUN, {**self._what, "gradients": list(gradients)}, inputs)

    def ask(self, word: str, values: Mapping[str, Any], tensors: Sequence[Tensor | None]) -> Message:
        """Ask the worker that has the part."""
        return self._line.ask(self._worker, Message(word, values, tensors))


class _Remote(torch.autograd.Function):
    """A part's outputs, with the gradient of its inputs from where it was computed."""

    @staticmethod
    def forward(ctx: Any, part: RemotePart, *inputs: Tensor) -> tuple[Tensor, ...]:
        answer = part.run(inputs, ctx.needs_input_grad[1:])
        made, handed = _present(answer.tensors), [tensor.view_as(tensor) for tensor in part.handed(inputs)]
        ctx.part, ctx.call = part, answer.values["call"]
        flags = [*answer.values["gradients"], *(tensor.requires_grad for tensor in part.handed(inputs))]
        ctx.mark_non_differentiable(*(t for t, flag in zip((*made, *handed), flags, strict=True) if not flag))
        ctx.set_materialize_grads(False)
        return (*made, *handed)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        answer = ctx.part.ask(BACK, {"call": ctx.call}, gradients)
        return (None, *answer.tensors)


class Answers:
    """What a worker computes for others: its own parts of pieces.

    Args:
        chains: by name, what gives the chain as this worker has it.
        workers: by the number of a unit, who has it.
        rank: of this worker.
    """

    def __init__(self, chains: Mapping[str, Callable[[], Chain]], workers: Sequence[int], rank: int) -> None:
        self._chains, self._workers, self._rank = chains, workers, rank
        self._parts = dict[tuple[Any, ...], Part]()
        self._kept = dict[int, tuple[tuple[Tensor, ...], list[Tensor]]]()  # outputs and inputs, for a backward pass
        self._calls = itertools.count()

    def forget(self) -> None:
        """Let go of all parts, as their quantizers become others, and of what was kept for a backward pass."""
        self._parts.clear()
        self._kept.clear()

    def run(self, message: Message) -> Message:
        """Forward; the answer has what the part makes."""
        part, wanted = self._part(message.values), message.values["gradients"]
        tensors = _present(message.tensors)
        if wanted is None:
            with torch.no_grad():
                return Message(RUN, {}, part.module(*tensors)[: len(part.made)])
        inputs = [tensor.requires_grad_(flag) for tensor, flag in zip(tensors, wanted, strict=True)]
        with torch.enable_grad():
            outputs = part.module(*inputs)
        call, made = next(self._calls), outputs[: len(part.made)]
        self._kept[call] = outputs, inputs
        values = {"call": call, "gradients": [tensor.requires_grad for tensor in made]}
        return Message(RUN, values, made)

    def back(self, message: Message) -> Message:
        """Backward; the answer has the gradients of the inputs, None where there is none."""
        outputs, inputs = self._kept.pop(message.values["call"])
        pairs = [(o, g) for o, g in zip(outputs, message.tensors, strict=True) if g is not None and o.requires_grad]
        moved = [tensor for tensor in inputs if tensor.requires_grad]
        found: Sequence[Tensor | None] = [None] * len(moved)
        if pairs:
            ends, gradients = zip(*pairs, strict=True)
            found = torch.autograd.grad(ends, moved, gradients, allow_unused=True)
        by_input = dict(zip(map(id, moved), found, strict=True))
        return Message(BACK, {}, [by_input.get(id(tensor)) for tensor in inputs])

    def _part(self, what: Mapping[str, Any]) -> Part:
        key = what["chain"], tuple(what["inputs"]), tuple(what["outputs"]), what["dtype"]
        if key not in self._parts:
            piece = self._chains[what["chain"]]().cut(what["inputs"], what["outputs"])
            if what["dtype"] is not None:
                # A rewritten piece has copies of weights and belongs to one unit; that of the unit before is done.
                self._parts = {key: part for key, part in self._parts.items() if key[-1] is None}
                piece = fuse(piece, _DTYPES[what["dtype"]])
            self._parts[key] = next(part for part in divide(piece, self._workers) if part.worker == self._rank)
        return self._parts[key]


def _present(tensors: Sequence[Tensor | None]) -> list[Tensor]:
    """Tensors that are all there."""
    return [tensor for tensor in tensors if tensor is not None]
