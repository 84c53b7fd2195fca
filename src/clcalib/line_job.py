"""A run whose units are with several workers: each works on its own, one after the other; worker 0 does all else.

One worker at a time leads: it asks, and all others answer, with their parts of pieces, with the stores before the
leader's first unit, and, worker 0, with what is saved.  So every worker knows at any time whom it hears.  In the end
worker 0 leads: it measures and evaluates the network through all workers, and gets what is to be written.
"""

from __future__ import annotations

import dataclasses
import warnings

import torch
from torch import Tensor

from clcalib.calibrate.caches import range_rows, round_along
from clcalib.calibrate.journal import Journal
from clcalib.calibrate.layout import Layout
from clcalib.calibrate.pair import Pair
from clcalib.calibrate.space import StoreSpace
from clcalib.calibrate.store import RowState
from clcalib.calibrate.walk import UnitTrace, Walk
from clcalib.capture.chain import Chain
from clcalib.errors import ArgumentError, ClcalibWarning, Interrupted
from clcalib.export.checkpoint import saved_tensors
from clcalib.identity import identity_of
from clcalib.job import Job, Outcome
from clcalib.objectives.batch import Need
from clcalib.objectives.keys import KeySet, build_keys
from clcalib.placed.division import mark_units
from clcalib.placed.pieces import BACK, RUN, Answers, Asked
from clcalib.placed.plan import workers_of
from clcalib.placed.release import release
from clcalib.placed.saved import TELL, WARN, AskedParts, TellingObserver, answered, pass_on, telling_warnings
from clcalib.placed.stores import ROWS, STORES, KeptStores, fetched
from clcalib.quant.insert import QuantizedChain, insert_quantizers
from clcalib.team.messages import Message
from clcalib.team.parts import Parts

_IDENTITY, _LISTEN, _START, _WALK, _FORGET, _SAVED = "identity", "listen", "start", "walk", "forget", "saved"
_DONE, _STOPPED = "done", "stopped"
_DTYPES = {str(dtype): dtype for dtype in (torch.float32, torch.bfloat16)}


def held(job: Job) -> Job:
    """The job of one worker of a line: what it depends on is found, then the weights of other workers are let go of."""
    assert job.line is not None
    identity, row = identity_of(job), job.plan[job.line.rank]
    mark_units(job.chain)
    release(job.chain, range(row.first, row.last + 1))
    chain = _placed(job.chain, "float", job)
    return dataclasses.replace(job, chain=chain, identity=identity)


def _placed(chain: Chain, name: str, job: Job) -> Chain:
    assert job.line is not None
    return dataclasses.replace(chain, placed=Asked(name, job.line, workers_of(job.plan)))


class Holder:
    """A worker of a line, with the units that it has.

    Args:
        job: as ``held`` gives it.
        space: where its stores are kept.
        parts: of worker 0, the saved state; None where nothing is saved.
    """

    def __init__(self, job: Job, space: StoreSpace, parts: Parts | None = None) -> None:
        assert job.line is not None
        self._job, self._space, self._line = job, space, job.line
        row = job.plan[self._line.rank]
        self._units, self._is_last = range(row.first, row.last + 1), self._line.rank == self._line.workers - 1
        self._parts, self._kept = parts, KeptStores({})
        self._base: QuantizedChain | None = None
        self._reference: QuantizedChain | None = None
        chains = {
            "float": lambda: job.chain,
            "nearest": lambda: self.reference.chain,
            "result": lambda: self.base.chain,
        }
        self._answers = Answers(chains, workers_of(job.plan), self._line.rank)

    @property
    def base(self) -> QuantizedChain:
        """The chain that becomes the result; only the units of this worker have values."""
        assert self._base is not None
        return self._base

    @property
    def reference(self) -> QuantizedChain:
        """The same under nearest rounding."""
        assert self._reference is not None
        return self._reference

    def calibrate(self) -> Outcome:
        """Of worker 0: have all workers find ranges, round and optimise, one after the other.

        Raises:
            ArgumentError: a worker was started with another run.
            Interrupted: the run was asked to stop.
        """
        job = self._job
        self._check_runs()
        keys = job.keys()
        job.clock.stage("weight ranges")
        self._start()
        for rank in self._line.others:
            self._lead(rank, Message(_START))
        job.clock.stage("reconstruction")
        traces = self._walk(keys)
        for rank in self._line.others:
            answer = self._lead(rank, _walk_message(keys))
            traces += [UnitTrace.from_values(values) for values in answer.values["traces"]]
        return Outcome(self.reference, self.base, traces, None)

    def collected(self) -> dict[str, Tensor]:
        """Of worker 0: what is written of the units of all others."""
        found = dict[str, Tensor]()
        for rank in self._line.others:
            answer = self._line.ask(rank, Message(_SAVED))
            pairs = zip(answer.values["names"], answer.tensors, strict=True)
            found |= {name: tensor for name, tensor in pairs if tensor is not None}
        return found

    def dismiss(self) -> None:
        """Of worker 0: the others have nothing more to do."""
        for rank in self._line.others:
            self._line.tell(rank, Message(_DONE))

    def serve(self, rank: int = 0) -> Message:
        """Do what the leading worker asks for, until it has done its work; returns what it says then.

        Raises:
            WorkerLostError: it is gone.
            Interrupted: the run was asked to stop.
        """
        while (message := self._line.hear(rank)).word != _DONE:
            if message.word == _STOPPED:
                raise Interrupted
            if message.word in (TELL, WARN):
                pass_on(self._job.observer, message)
            elif message.word == _LISTEN:
                self.serve(message.values["to"])
            elif message.word in (_START, _WALK):
                self._take_the_lead(message)
            else:
                self._line.tell(rank, self._answer(message))
        return message

    def _answer(self, message: Message) -> Message:
        if message.word == RUN:
            return self._answers.run(message)
        if message.word == BACK:
            return self._answers.back(message)
        if message.word in (STORES, ROWS):
            return self._kept.answer(message)
        if message.word == _FORGET:
            self._kept = KeptStores({})
            return Message(_FORGET)
        if message.word == _SAVED:
            tensors = saved_tensors(self.base)
            return Message(_SAVED, {"names": list(tensors)}, list(tensors.values()))
        if message.word == _IDENTITY:
            return self._compared(message)
        return answered(self._parts, message)

    def _lead(self, rank: int, message: Message) -> Message:
        """Of worker 0: let another worker lead; returns what it says in the end."""
        for other in self._line.others:
            if other != rank:
                self._line.tell(other, Message(_LISTEN, {"to": rank}))
        self._line.tell(rank, message)
        return self.serve(rank)

    def _take_the_lead(self, message: Message) -> None:
        answer = Message(_DONE)
        try:
            with telling_warnings(self._line):
                if message.word == _START:
                    self._start()
                else:
                    traces = self._walk(_keys_of(message))
                    answer = Message(_DONE, {"traces": [dataclasses.asdict(trace) for trace in traces]})
        except KeyboardInterrupt:
            self._line.tell(0, Message(_STOPPED))
            raise
        for rank in self._line.others:
            self._line.tell(rank, answer if rank == 0 else Message(_DONE))

    def _start(self) -> None:
        """Round this worker's weights to nearest; find the ranges of the activations behind all that is rounded so."""
        job = self._job
        base = insert_quantizers(job.chain, job.policy, job.weight_rule)
        copy = base.copy()
        self._base = dataclasses.replace(base, chain=_placed(base.chain, "result", job))
        self._reference = dataclasses.replace(copy, chain=_placed(copy.chain, "nearest", job))
        state, layout = range_rows(job.chain, job.images, job.team)
        if self._line.rank > 0:
            state = self._fetch()["nearest"]
        with warnings.catch_warnings():
            # The same ranges are found again in the walk, and warn there.
            warnings.simplefilter("ignore", ClcalibWarning)
            state = round_along(self._units, self.reference, state, job.activation_rule, self._space, layout)
        self._keep({"nearest": state})

    def _walk(self, keys: dict[Need, KeySet]) -> list[UnitTrace]:
        """Visit this worker's units."""
        job, journal = self._job, Journal(self._parts)
        if self._line.rank > 0:
            asked = AskedParts(self._line)
            job, journal = (
                dataclasses.replace(job, observer=TellingObserver(self._line)),
                Journal(asked, heed=asked.heed),
            )
        walk = job.walk(self.base, keys, self._space, journal)
        if self._line.rank == 0:
            walk.warn_without_norms()
        calibration, other = self._pairs(walk)
        traces = list(walk.along(self._units, calibration, other, walk.quality(job.images, job.held_out)))
        kept = {"calibration quantized": calibration.quantized, "calibration floating": calibration.floating}
        if other is not None:
            kept |= {"held-out quantized": other.quantized, "held-out floating": other.floating}
        self._keep(kept)
        self._answers.forget()
        return traces

    def _pairs(self, walk: Walk) -> tuple[Pair, Pair | None]:
        """The stores before this worker's first unit."""
        job = self._job
        if self._line.rank == 0:
            return walk.pair(job.images), None if job.held_out is None else walk.pair(job.held_out)
        stores = self._fetch()

        def pair(name: str, images: Tensor) -> Pair:
            layout = Layout.of(job.team, len(images))
            return Pair(stores[f"{name} quantized"], stores[f"{name} floating"], layout)

        return pair("calibration", job.images), None if job.held_out is None else pair("held-out", job.held_out)

    def _fetch(self) -> dict[str, RowState]:
        """The stores that the worker before this one keeps; then it keeps them no more."""
        found = fetched(self._line, self._line.rank - 1, self._space)
        self._line.ask(self._line.rank - 1, Message(_FORGET))
        return found

    def _keep(self, stores: dict[str, RowState]) -> None:
        self._kept = KeptStores({} if self._is_last else stores)

    def _check_runs(self) -> None:
        """Raise where a worker was started with another run; the type of convolutions is worker 0's."""
        values = {"fields": identity_of(self._job), "dtype": str(self._job.dtype)}
        for rank in self._line.others:
            if told := self._line.ask(rank, Message(_IDENTITY, values)).values["differences"]:
                expected = "the same run, and the same kind of machine, on all workers"
                raise ArgumentError("line", expected, f"on worker {rank} {'; '.join(told)}")

    def _compared(self, message: Message) -> Message:
        first, own = message.values["fields"], identity_of(self._job)
        names = [name for name in {**first, **own} if name != "precision" and first.get(name) != own.get(name)]
        told = [
            f"{name} {own.get(name, 'not there')}, and {first.get(name, 'not there')} on worker 0" for name in names
        ]
        self._job = dataclasses.replace(self._job, dtype=_DTYPES[message.values["dtype"]])
        return Message(_IDENTITY, {"differences": told})


def _walk_message(keys: dict[Need, KeySet]) -> Message:
    tensors = [tensor for each in keys.values() for tensor in (each.values, each.predictions, each.identity)]
    return Message(_WALK, {"needs": [need.value for need in keys]}, tensors)


def _keys_of(message: Message) -> dict[Need, KeySet]:
    tensors = [tensor for tensor in message.tensors if tensor is not None]
    rows = [tensors[first : first + 3] for first in range(0, len(tensors), 3)]
    return {Need(name): build_keys(*row) for name, row in zip(message.values["needs"], rows, strict=True)}
