"""The workers behind the first of a line: each has units of the network, and does what is asked of it."""

from __future__ import annotations

import inspect
from typing import Any

from torch import nn

from clcalib.calibrate.observer import SilentObserver
from clcalib.calibrate.space import StoreSpace
from clcalib.data.calibration import CalibrationSet
from clcalib.job import prepare
from clcalib.line_job import Holder, held
from clcalib.modes import usual_modes
from clcalib.pipeline import quantize
from clcalib.report.environment import StageClock


def attend(model: nn.Module, calibration: CalibrationSet, **arguments: Any) -> None:
    """Do the part of a worker of ``quantize(..., line=...)`` that is not the first; returns when the result is there.

    Args:
        model: as for ``quantize``; its parameters are let go of.
        calibration: as for ``quantize``.
        arguments: all others of ``quantize``, with this worker's ``line``.

    Raises:
        WorkerLostError: another worker is gone.
        ClcalibError: as ``quantize`` raises it.
    """
    given = inspect.signature(quantize).bind(model, calibration, **arguments)
    given.apply_defaults()
    settings = dict(given.arguments) | {"observer": SilentObserver(), "is_rehearsed": False, "evaluation": None}
    for name in ("state_folder", "is_resumed"):
        del settings[name]
    with usual_modes(), StageClock(lambda name: None) as clock:
        job = held(prepare(clock=clock, **settings))
        settings["model"].to("meta")
        with StoreSpace(job.memory_budget, job.spill_folder) as space:
            Holder(job, space).serve()
