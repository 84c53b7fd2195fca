"""The losses of a run, unit by unit, as versioned JSON (``trace.json``).

It holds no times, so that two identical runs leave identical files.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal, Self

from pydantic import Field, model_validator

from clcalib.files import write_atomically
from clcalib.report.reading import read_model
from clcalib.report.values import Count, Frozen

TRACE_FILE = "trace.json"
TRACE_VERSION: Literal[1] = 1
MOST_BYTES = 64 << 20  # a network of 1,000 units has about 10 MB


class UnitCurves(Frozen):
    """The losses of one unit.

    Attributes:
        name: the unit's; "whole network" is the last phase.
        steps: counted from 0 over all phases, rising; at most about 200 of them.
        losses: term -> its loss at each of these steps, without its weight; None where it was not due yet, or not
            finite.
    """

    name: str
    steps: tuple[Count, ...] = ()
    losses: dict[str, tuple[float | None, ...]] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _check_lengths(self) -> Self:
        if any(later <= earlier for earlier, later in zip(self.steps, self.steps[1:], strict=False)):
            raise ValueError("the steps do not rise")
        if any(len(column) != len(self.steps) for column in self.losses.values()):
            raise ValueError(f"a loss has another number of values than the {len(self.steps)} steps")
        return self


class RunTrace(Frozen):
    """The losses of all units in their order, and those of the phase over the whole network, if there was one."""

    schema_version: Literal[1] = TRACE_VERSION
    units: tuple[UnitCurves, ...] = ()
    last_phase: UnitCurves | None = None


def write_trace(trace: RunTrace, path: str | Path) -> None:
    """Write the trace as JSON, atomically."""
    text = json.dumps(trace.model_dump(mode="json"), ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    write_atomically(path, (text + "\n").encode())


def read_trace(path: str | Path) -> RunTrace:
    """Read a trace that :func:`write_trace` wrote.

    Raises:
        FileNotFoundError: there is no such file.
        CheckpointError: the file is not a trace of this version; the message names the field.
        NumericalError: a number in it is not finite.
    """
    remedy = "run `clcalib quantize` again to get one, or delete it"
    return read_model(path, RunTrace, f"a trace of version {TRACE_VERSION}", remedy=remedy, most=MOST_BYTES)
