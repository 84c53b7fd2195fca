"""The steps of a phase on a GPU: each kind of step is recorded once, as a CUDA graph, and played back.

What changes from step to step stands in one small tensor that is written before each step: the batch, the keys of the
masks, the progress, annealed numbers, Adam's factors.  The step reads all of it there, played back or not, so both
give the same bits.  A kind is recorded after some steps that were run as they are.  Its next step, which has other
numbers, is run and played back from the same state, and the results must be the same bit for bit; else, and where a
step cannot be recorded, all steps are run as they are.  Why so: docs/decisions/0009.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import gc
import itertools
import math
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Protocol

import torch
from torch import Tensor

from clcalib.calibrate.step import Step, annealed_at, names_of
from clcalib.errors import SlowPathWarning

WARM_UP = 2  # steps of a kind before it is recorded, in which libraries choose and compile what they run
LEAST_LEFT = 64  # steps of the phase that must be left, for a recording takes the time of many; a guess
Moved = list[list[int]]  # by group, the parameters that a step moves


class Recorder(Protocol):
    """Records what is done on a device."""

    def running(self) -> AbstractContextManager[object]:
        """Around all steps."""

    def refusing_to_wait(self) -> AbstractContextManager[object]:
        """Inside, an error is raised by what makes the host wait for the device and so cannot be recorded."""

    def record(self, work: Callable[[], object]) -> Callable[[], None]:
        """What does the work again, on the same memory; the work itself is not done."""


class CudaGraphs:
    """All graphs of a phase: one stream, and one pool of memory, for they never run at the same time.

    Nothing in the pool outlives a step: parameters, Adam's means, losses and numbers were allocated before.
    """

    def __init__(self, device: torch.device) -> None:
        self._stream = _stream_of(device)
        self._pool = torch.cuda.graph_pool_handle()

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        outer = torch.cuda.current_stream(self._stream.device)
        self._stream.wait_stream(outer)
        try:
            with torch.cuda.stream(self._stream):
                yield
        finally:
            outer.wait_stream(self._stream)

    @contextlib.contextmanager
    def refusing_to_wait(self) -> Iterator[None]:
        before = torch.cuda.get_sync_debug_mode()
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*debug mode is a prototype")  # of PyTorch, at its first use
            torch.cuda.set_sync_debug_mode("error")
        try:
            yield
        finally:
            torch.cuda.set_sync_debug_mode(before)

    def record(self, work: Callable[[], object]) -> Callable[[], None]:
        graph, was_collecting = torch.cuda.CUDAGraph(), gc.isenabled()
        gc.disable()  # what is collected inside a recording, as another graph may be, breaks it
        try:
            with torch.cuda.graph(graph, pool=self._pool, stream=self._stream):
                work()
        finally:
            if was_collecting:
                gc.enable()
        replay: Callable[[], None] = graph.replay
        return replay


@functools.cache
def _stream_of(device: torch.device) -> torch.cuda.Stream:
    """One for all phases, since freed memory is kept for the stream that used it."""
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]


RECORDERS: dict[str, Callable[[torch.device], Recorder]] = {"cuda": CudaGraphs}  # by the type of the device


class StepNumbers:
    """A row of 8-byte words on the device, and the tensors that read its parts.

    Attributes:
        index: the images of the step, (B,) int64.
        words: key and tweak of each mask, (draws, 2) int32.
        progress: (), float64.
        annealed: by term, (terms,) float64.
        factors: by group, ``Adam.factors``, (P, 2) float64.
    """

    def __init__(self, device: torch.device, *, batch: int, draws: int, terms: int, groups: Sequence[int]) -> None:
        sizes = [batch, draws, 1, terms, *(2 * count for count in groups)]
        self._row = torch.zeros(sum(sizes), dtype=torch.int64, device=device)
        self.index, words, *floats = torch.split(self._row, sizes)
        self.words = words.view(torch.int32).view(draws, 2)
        progress, self.annealed, *factors = (part.view(torch.float64) for part in floats)
        self.progress = progress.reshape(())
        self.factors = [part.view(-1, 2) for part in factors]

    def write(self, index: Tensor, words: Sequence[int], floats: Sequence[float]) -> None:
        """Queue the next step's numbers: the images, 64 bits for each mask, and all that is float64, in order."""
        signed = [word - (1 << 64) if word >= 1 << 63 else word for word in words]
        parts = index, torch.tensor(signed, dtype=torch.int64), torch.tensor(floats, dtype=torch.float64)
        row = torch.cat([part.view(torch.int64) for part in parts])
        if self._row.is_cuda:  # from pinned memory, a new piece each time, the copy takes its place in the queue
            row = row.pin_memory()
        self._row.copy_(row, non_blocking=True)


@dataclasses.dataclass(frozen=True)
class Kind:
    """What two steps must have in common to be one recording.

    Attributes:
        due: the places of the terms that are computed.
        active, idle: those of them with an annealed number, and those of them that are zero for now.
        together: by group, which parameters have taken equally many steps, so that Adam moves them in one launch.
    """

    due: tuple[int, ...]
    active: tuple[int, ...]
    idle: tuple[int, ...]
    together: tuple[tuple[int, ...], ...]


@dataclasses.dataclass
class _Known:
    """A kind of step: how often it was run, what it moves, its recording, and whether that proved right."""

    runs: int = 0
    moved: Moved = dataclasses.field(default_factory=list)
    replay: Callable[[], None] | None = None
    is_checked: bool = False


class DeviceSteps:
    """Runs steps one after the other; see the top of this file.

    Warns:
        SlowPathWarning: steps are not recorded, and why; told once for each reason.
    """

    def __init__(self, step: Step) -> None:
        self._step = step
        device, groups = step.data.target.device, [len(group.optimizer.parameters) for group in step.trained]
        terms = len(step.phase.terms)
        self._numbers = StepNumbers(device, batch=step.batch_size, draws=step.most_draws, terms=terms, groups=groups)
        self._losses = torch.zeros(2, terms, dtype=torch.float64, device=device)  # the latest, and the sums of all
        self._names, self._latest = names_of(step.phase), dict[str, int]()
        self._kinds = dict[Kind, _Known]()
        self._recorder = None if os.environ.get("CLCALIB_GRAPHS") == "0" else RECORDERS[device.type](device)
        if self._recorder is not None and step.data.in_files(step.phase):
            self._recorder = None
            _tell("the unit's inputs or targets are in files, beyond the memory budget")
        elif self._recorder is not None and step.phase.augmentation:
            self._recorder = None
            _tell("the images of each step are changed by the host")

    def running(self) -> AbstractContextManager[object]:
        """Around all steps."""
        return contextlib.nullcontext() if self._recorder is None else self._recorder.running()

    def run(self, number: int) -> None:
        """Queue one step."""
        step, progress = self._step, number / self._step.phase.steps
        due = step.due(number)
        annealed = annealed_at(step.phase, due, progress)
        active, idle = (tuple(at for at, v in annealed.items() if (v is None) == none) for none in (False, True))
        kind = Kind(due, active, idle, tuple(group.optimizer.partition() for group in step.trained))
        self._write(number, progress, annealed)
        known = self._kinds.setdefault(kind, _Known())
        if known.replay is not None and known.is_checked:
            known.replay()
        elif self._is_ripe(known, number):
            self._record(known, functools.partial(self._work, number, kind))
        else:
            known.moved = self._work(number, kind)
        known.runs += 1
        for group, moved in zip(step.trained, known.moved, strict=True):
            group.optimizer.count(moved)
        self._latest |= {self._names[at]: at for at in due}

    def losses(self) -> dict[str, float]:
        """Of each term, the loss of the last step at which it was due, not finite if it ever was not; waits."""
        latest, sums = self._losses.tolist()
        return {name: latest[at] if math.isfinite(sums[at]) else sums[at] for name, at in self._latest.items()}

    def _write(self, number: int, progress: float, annealed: dict[int, float | None]) -> None:
        step = self._step
        step.random.advance(number)
        index = step.random.batch(len(step.data.target), step.phase.batch_size)
        pairs = zip(step.trained, step.rates(number), strict=True)
        factors = [group.optimizer.factors(rate) for group, rate in pairs]
        betas = [annealed.get(at) or 0.0 for at in range(len(step.phase.terms))]
        floats = [progress, *betas, *itertools.chain.from_iterable(itertools.chain.from_iterable(factors))]
        self._numbers.write(index, step.random.numbers(step.most_draws), floats)

    def _work(self, number: int, kind: Kind) -> Moved:
        """One step; on the device, a function of the numbers' tensors and of what steps change."""
        step, numbers = self._step, self._numbers
        step.random.advance(number)
        annealed = {**dict.fromkeys(kind.idle), **{at: numbers.annealed[at] for at in kind.active}}
        with step.random.reading(numbers.words):
            losses = step.losses(kind.due, numbers.index, numbers.progress, annealed)
        for at, loss in zip(kind.due, losses, strict=True):
            self._losses[0, at].copy_(loss)
            self._losses[1, at].add_(loss)
        groups = zip(step.trained, numbers.factors, strict=True)
        moved = [group.optimizer.step_by(factors) for group, factors in groups]
        step.forget_gradients()
        return moved

    def _is_ripe(self, known: _Known, number: int) -> bool:
        is_worth_it = self._step.phase.steps - number > LEAST_LEFT
        return self._recorder is not None and known.runs >= WARM_UP and is_worth_it

    def _record(self, known: _Known, work: Callable[[], Moved]) -> None:
        """Do a step and record its kind; when such a step comes again, do it and hold the recording against it."""
        assert self._recorder is not None
        state = [self._losses, *(tensor for group in self._step.trained for tensor in group.optimizer.state())]
        before = _copies(state)
        try:
            with self._recorder.refusing_to_wait():
                known.moved = work()
            if known.replay is None:
                known.replay, problem = self._recorder.record(work), ""
            else:
                expected = _copies(state)
                _restore(state, before)
                known.replay()
                known.is_checked = all(map(_is_same, state, expected))
                problem = "" if known.is_checked else "a recording gives other bits than the step"
        except Exception as error:  # of a driver, a library or the network's own code: it must not stop a run
            problem = f"{type(error).__name__}: {error}".splitlines()[0]
        if problem:
            _restore(state, before)
            known.replay, self._recorder = None, None
            _tell(problem)
            known.moved = work()


def _copies(tensors: Sequence[Tensor]) -> list[Tensor]:
    return [tensor.detach().clone() for tensor in tensors]


def _is_same(one: Tensor, other: Tensor) -> bool:
    """The same numbers, and NaN in the same places: that is the watchdog's business."""
    return torch.equal(one, other) or torch.allclose(one, other, rtol=0.0, atol=0.0, equal_nan=True)


@torch.no_grad()
def _restore(tensors: Sequence[Tensor], values: Sequence[Tensor]) -> None:
    for tensor, value in zip(tensors, values, strict=True):
        tensor.copy_(value)


@functools.cache
def _tell(reason: str) -> None:
    warnings.warn(
        f"a unit's steps are not recorded as CUDA graphs: {reason}; they take more time, and give the same result; "
        "set CLCALIB_GRAPHS=0 to take that path without this notice",
        SlowPathWarning,
        stacklevel=4,
    )
