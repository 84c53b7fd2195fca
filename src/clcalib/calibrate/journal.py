"""What the walk saves as it goes, and finds again: finished units, and every minute the steps of the one under way.

A unit is its quantizers; the stores of activations between units are computed again from them, bit for bit, in a
fraction of the time.  A step's random numbers depend on its counters alone, so that what a phase is after some steps is
its parameters and Adam's means.
"""

from __future__ import annotations

import dataclasses
import time
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from clcalib import errors
from clcalib.calibrate.adam import Adam
from clcalib.calibrate.curves import CurveRecorder
from clcalib.calibrate.guard import quantizers_of
from clcalib.durable import stop
from clcalib.durable.payload import Payload
from clcalib.errors import ClcalibWarning, Interrupted, ResumeError
from clcalib.quant.insert import QuantizedChain
from clcalib.quant.modules import ActivationQuantizer, IntegerWeight
from clcalib.quant.spec import QParams
from clcalib.team.parts import Parts

SNAPSHOT_SECONDS = 60.0
Quantizers = Mapping[str, IntegerWeight | ActivationQuantizer]


@dataclasses.dataclass(frozen=True)
class Journal:
    """A run's saved state as the walk sees it.

    Attributes:
        state: where it is; None where nothing is saved.
        snapshot_seconds: most time between two saves inside a unit.
        prefix: of the names of units, so that those of the last phase are others.
    """

    state: Parts | None = None
    snapshot_seconds: float = SNAPSHOT_SECONDS
    prefix: str = "unit"

    def name(self, index: int) -> str:
        """What a finished unit is saved as."""
        return f"{self.prefix}-{index:05d}"

    def has(self, name: str) -> bool:
        """Whether a part of this name is saved, be it whole or not."""
        return self.state is not None and name in self.state.names

    def recall(self, name: str, chain: QuantizedChain) -> Payload | None:
        """Put the quantizers of a saved part into their places and tell its warnings again.

        Returns:
            what was saved, or None where nothing was.
        """
        saved = None if self.state is None else self.state.get(name)
        if saved is None or self.state is None:
            return None
        try:
            quantizers = quantizers_from(saved.tensors, chain)
            told = [(str(kind), str(text)) for kind, text in saved.values["warnings"]]
        except (KeyError, ValueError, TypeError) as error:
            self.state.refuse(name, f"it does not fit the network ({error})")
            return None
        for place, quantizer in quantizers.items():
            chain.replace(place, quantizer)
        for kind, text in told:
            warnings.warn(text, _category(kind), stacklevel=3)
        return saved

    def commit(
        self, index: int, count: int, quantizers: Quantizers, trace: object, told: Sequence[warnings.WarningMessage]
    ) -> None:
        """Save a finished unit, and raise where the run was asked to stop.

        Args:
            index: of the unit.
            count: of all units.
            quantizers: its quantizers, by name.
            trace: a dataclass of plain values.
            told: the warnings that it gave.

        Raises:
            StorageError: it could not be saved.
            Interrupted: the run was asked to stop.
        """
        later = [self.name(number) for number in range(index + 1, count)]
        values = {"trace": dataclasses.asdict(trace)}  # type: ignore[call-overload]
        self._save(self.name(index), quantizers, told, values, instead_of=self.partial_name(index), before=later)

    def commit_part(self, name: str, quantizers: Quantizers, told: Sequence[warnings.WarningMessage]) -> None:
        """Save something else that is finished; see ``commit``."""
        self._save(name, quantizers, told, {})

    def _save(
        self,
        name: str,
        quantizers: Quantizers,
        told: Sequence[warnings.WarningMessage],
        values: Mapping[str, Any],
        **replacing: Any,
    ) -> None:
        if self.state is not None:
            # That a tracker failed is of no concern to the process that goes on.
            lasting = [message for message in told if not issubclass(message.category, errors.TrackingWarning)]
            texts = [[message.category.__name__, str(message.message)] for message in lasting]
            self.state.put(name, Payload(tensors_of(quantizers), {**values, "warnings": texts}), **replacing)
        raise_if_stopped()

    def steps(self, index: int, chain: QuantizedChain, curves: CurveRecorder) -> UnitJournal:
        """The journal of the steps of one unit of the chain, whose losses go to ``curves``.

        What an earlier process saved of them is put into its place.
        """
        return UnitJournal(self, index, chain, curves)

    def partial_name(self, index: int) -> str:
        """What the steps of a unit are saved as."""
        return f"{self.name(index)}-part"


class UnitJournal:
    """The steps of one unit, over all its phases.

    Attributes:
        phase: the first one that is not finished.
    """

    def __init__(self, journal: Journal, index: int, chain: QuantizedChain, curves: CurveRecorder) -> None:
        self._journal, self._name, self._index = journal, journal.partial_name(index), index
        self._chain, self._curves = chain, curves
        self._last = time.monotonic()
        self._saved = journal.recall(self._name, chain)
        if self._saved is not None:
            curves.restore(self._saved.values["curves"])
        self.phase = 0 if self._saved is None else int(self._saved.values["phase"])

    def of_phase(self, number: int) -> PhaseJournal:
        """The part of it that is about one phase."""
        return PhaseJournal(self, number)

    def restore(self, phase: int, optimizers: Sequence[Adam]) -> int:
        """Bring a phase's parameters to where they were saved; return the number of the step that comes next.

        Raises:
            ResumeError: they are others.
        """
        saved, self._saved = self._saved, None
        if saved is None or phase != self.phase:
            return 0
        groups: list[list[int]] = saved.values["groups"]
        try:
            for number, (optimizer, steps) in enumerate(zip(optimizers, groups, strict=True)):
                optimizer.restore([saved.tensors[f"group/{number}/{at}"] for at in range(3 * len(steps))], steps)
        except (ValueError, KeyError) as error:
            raise ResumeError(f"the saved steps of {self._name} do not fit the unit ({error}); begin anew") from None
        return int(saved.values["step"])

    def tick(self, phase: int, step: int, optimizers: Sequence[Adam]) -> None:
        """Called before each step: every now and then, and where the run was asked to stop, all of it is saved.

        Raises:
            StorageError: it could not be saved.
            Interrupted: the run was asked to stop.
        """
        is_due = time.monotonic() - self._last >= self._journal.snapshot_seconds
        if not (is_due or stop.is_asked()):
            return
        if self._journal.state is not None and (phase, step) != (0, 0):
            self._save(self._journal.state, phase, step, optimizers)
        self._last = time.monotonic()
        raise_if_stopped()

    def _save(self, state: Parts, phase: int, step: int, optimizers: Sequence[Adam]) -> None:
        tensors = tensors_of(quantizers_of(self._chain.chain.body(self._index)))
        for number, optimizer in enumerate(optimizers):
            tensors |= {f"group/{number}/{at}": tensor for at, tensor in enumerate(optimizer.state())}
        groups = [optimizer.steps() for optimizer in optimizers]
        values = {"phase": phase, "step": step, "groups": groups, "curves": self._curves.values(), "warnings": []}
        state.put(self._name, Payload(tensors, values))


@dataclasses.dataclass(frozen=True)
class PhaseJournal:
    """The steps of one phase of a unit, as the loop wants them (``loop.Saves``)."""

    unit: UnitJournal
    phase: int

    def restore(self, optimizers: Sequence[Adam]) -> int:
        """See ``UnitJournal.restore``."""
        return self.unit.restore(self.phase, optimizers)

    def tick(self, step: int, optimizers: Sequence[Adam]) -> None:
        """See ``UnitJournal.tick``."""
        self.unit.tick(self.phase, step, optimizers)


class Unsaved:
    """The steps of a phase that are not saved: they begin at the first, and end where the run was asked to stop."""

    def restore(self, optimizers: Sequence[Adam]) -> int:
        """Nothing is there to be restored."""
        return 0

    def tick(self, step: int, optimizers: Sequence[Adam]) -> None:
        """Raise where the run was asked to stop.

        Raises:
            Interrupted: it was.
        """
        raise_if_stopped()


def tensors_of(quantizers: Quantizers) -> dict[str, Tensor]:
    """The tensors that quantizers are saved as; codes in one byte."""
    found = dict[str, Tensor]()
    for name, module in quantizers.items():
        if isinstance(module, IntegerWeight):
            found[f"{name}/codes"] = module.codes.to(torch.int8 if module.spec.is_signed else torch.uint8)
        found[f"{name}/scale"], found[f"{name}/zero_point"] = module.scale, module.zero_point
    return found


def quantizers_from(tensors: Mapping[str, Tensor], chain: QuantizedChain) -> dict[str, nn.Module]:
    """The quantizers that were saved, for their places in a chain.

    Raises:
        ValueError, KeyError: they do not fit.
    """
    found = dict[str, nn.Module]()
    modules = dict(chain.chain.module.named_modules())
    device = next(iter(chain.chain.module.state_dict().values())).device
    for name in dict.fromkeys(key.rpartition("/")[0] for key in tensors if not key.startswith("group/")):
        place = modules[name]
        parameters = QParams(tensors[f"{name}/scale"].to(device), tensors[f"{name}/zero_point"].to(device))
        if isinstance(place, IntegerWeight):
            codes = tensors[f"{name}/codes"].to(device)
            if codes.shape != place.codes.shape or parameters.scale.shape != place.scale.shape:
                raise ValueError(f"{name} has other shapes")
            found[name] = IntegerWeight(codes, parameters, place.spec)
        else:
            found[name] = ActivationQuantizer(parameters, place.spec)
    return found


def raise_if_stopped() -> None:
    """Raise where the run was asked to stop; what is finished is saved.

    Raises:
        Interrupted: it was.
    """
    if stop.is_asked():
        raise Interrupted


def _category(name: str) -> type[ClcalibWarning]:
    found = getattr(errors, name, ClcalibWarning)
    return found if isinstance(found, type) and issubclass(found, ClcalibWarning) else ClcalibWarning
