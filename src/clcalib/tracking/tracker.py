"""What the trackers share: an observer that turns the events of a run into named numbers over steps.

The names, the same for every tracker:

==========================================  ================================  ==============
name                                        what                              step
==========================================  ================================  ==============
``loss/UNIT/TERM``                          loss, without its weight          of the unit
``units/error_before``, ``_after``          error with nearest rounding, and  unit's number
                                            after the optimisation
``units/sqnr_db``, ``units/bound_before``,  measures of the finished units;   unit's number
``units/bound_after``                       ``_held_out`` on other images
``result/quantized_top1`` and others        accuracies, time, memory          0
==========================================  ================================  ==============

Where a run passes over the units again, as to keep an accuracy, names of the second pass begin with ``pass-2/``.
"""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from types import TracebackType
from typing import Literal, Protocol

from clcalib.calibrate.network import NAME as WHOLE_NETWORK
from clcalib.errors import TrackingWarning
from clcalib.quant.policy import LayerPolicy
from clcalib.report.record import RunRecord
from clcalib.report.trace import RunTrace
from clcalib.team.memory import MemoryPlan
from clcalib.tracking.measures import Setting, clean, result_numbers, settings_of, texts_of, unit_numbers

Status = Literal["finished", "failed", "stopped"]


class Sink(Protocol):
    """Where a tracker writes.  What it raises switches the tracker off, with a warning."""

    def begin(self, settings: Mapping[str, Setting]) -> Mapping[str, int]:
        """Open the run, or go on with it; return the last step of every name that it has."""

    def number(self, name: str, value: float, step: int) -> None:
        """Take one number; it may wait for ``flush``.  It is called often, and says nothing on any channel."""

    def flush(self) -> None:
        """Let everything be seen that was taken."""

    def finish(self, settings: Mapping[str, Setting], results: Mapping[str, float], texts: Mapping[str, str]) -> None:
        """Take what is known at the end: settings, the numbers of the result, and files by name."""

    def close(self, status: Status) -> None:
        """End the run."""


class Tracker:
    """Tells a sink of one run.  An error of the sink is a warning, once, and the end of the tracking, not of the run.

    Args:
        name: what warnings call it.
        sink: where it writes.
        settings: of the run; by default those that its record has.

    Raises:
        Exception: what the sink raises when it is opened, which is before the run begins.
    """

    def __init__(self, name: str, sink: Sink, settings: Mapping[str, Setting] | None = None) -> None:
        self._name, self._sink, self._settings = name, sink, settings
        self._is_on = True
        self._unit, self._pass, self._seen = "", 1, set[str]()
        with silenced():
            self._earlier = dict(sink.begin(settings or {}))

    def stage(self, name: str) -> None:
        """Nothing is told of stages."""

    def policy(self, rows: Sequence[LayerPolicy]) -> None:
        """Nothing is told of the table; the record has it."""

    def placed(self, plan: MemoryPlan) -> None:
        """Nothing is told of workers, whose number changes no result."""

    def correcting(self, done: int, count: int) -> None:
        """Nothing is told of corrected inputs."""

    def quality_so_far(
        self, agreement: float, accuracy: float | None = None, float_accuracy: float | None = None
    ) -> None:
        """Nothing is told of the network before its end; when it is measured depends on the machine's speed."""

    def unit_started(self, index: int, count: int, name: str, kind: str, steps: int) -> None:
        """Tell the steps that follow under this name."""
        self._enter(name)

    def step(self, step: int, losses: Mapping[str, float]) -> None:
        """Tell the losses of a step."""
        self._tell({f"loss/{self._unit}/{term}": value for term, value in losses.items()}, step)

    def unit_finished(self, index: int, name: str, error_before: float, error_after: float) -> None:
        """Tell the errors of a unit, and let them be seen."""
        place = "last_phase" if name == WHOLE_NETWORK else "units"
        self._tell({f"{place}/error_before": error_before, f"{place}/error_after": error_after}, index)
        self._do(self._sink.flush, is_quiet=True)

    def unit_recalled(self, index: int, count: int, name: str, error_before: float, error_after: float) -> None:
        """Tell the errors of a unit that was finished earlier, unless they are there."""
        self._enter(name)
        self.unit_finished(index, name, error_before, error_after)

    def finish(self, record: RunRecord, trace: RunTrace | None = None, more: Mapping[str, str] | None = None) -> None:
        """Tell what was measured on the result.

        Args:
            record: of the run.
            trace: its losses, to be kept as a file.
            more: further texts to be kept as files, by name.
        """
        self._pass = 1  # of several passes, the record has the one that was kept
        for index, unit in enumerate(record.units):
            self._tell(unit_numbers(unit), index)
        results = result_numbers(record)
        self._tell(results, 0)
        settings = settings_of(record) if self._settings is None else self._settings
        texts = {**texts_of(record, trace), **(more or {})}
        self._do(lambda: self._sink.finish(settings, results, texts), is_quiet=True)

    def __enter__(self) -> Tracker:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        status: Status = "finished"
        if kind is not None:
            status = "failed" if issubclass(kind, Exception) else "stopped"
        self._do(lambda: self._sink.close(status), is_quiet=True)
        self._is_on = False

    def _enter(self, name: str) -> None:
        """A unit comes; where it comes again, a new pass has begun."""
        if name in self._seen:
            self._pass, self._seen = self._pass + 1, set()
        self._seen.add(name)
        self._unit = name

    def _tell(self, numbers: Mapping[str, float], step: int) -> None:
        """Hand on what the sink has not got from an earlier process, which was the same."""
        prefix = "" if self._pass == 1 else f"pass-{self._pass}/"
        for name, value in numbers.items():
            full = clean(prefix + name)
            if step > self._earlier.get(full, -1):
                self._do(partial(self._sink.number, full, value, step))

    def _do(self, action: Callable[[], None], *, is_quiet: bool = False) -> None:
        """Do it, unless something has failed already.

        Args:
            action: of the sink.
            is_quiet: whether what packages say meanwhile is not shown.  Not for every number: each time, Python forgets
                which warnings it has shown.
        """
        if not self._is_on:
            return
        try:
            with silenced() if is_quiet else contextlib.nullcontext():
                action()
        except Exception as error:  # of whatever kind a full disk, a database or a server raises
            self._is_on = False
            with silenced(), contextlib.suppress(Exception):
                self._sink.close("failed")
            told = str(error).strip().splitlines()
            reason = told[0] if told else type(error).__name__
            warnings.warn(
                f"{self._name}: {reason}; the run goes on and is tracked no more", TrackingWarning, stacklevel=2
            )


@contextlib.contextmanager
def silenced() -> Iterator[None]:
    """Keep the warnings and notes of the trackers' packages, which are no concern of a run, from being shown."""
    before = logging.root.manager.disable
    logging.disable(max(before, logging.ERROR))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
