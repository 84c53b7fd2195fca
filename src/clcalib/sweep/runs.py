"""The job of a sweep: one run of a configuration, in a folder of its own, which goes on where it was stopped."""

from __future__ import annotations

import hashlib

from pydantic import BaseModel

from clcalib.calibrate.observer import SilentObserver
from clcalib.config_sections import RunConfig
from clcalib.errors import ArgumentError, ResumeError
from clcalib.export.checkpoint import TENSORS
from clcalib.output import has_unfinished, is_finished
from clcalib.pipeline import RECORD_FILE
from clcalib.report.record import RunRecord, read_record
from clcalib.run import run
from clcalib.sweep.jobs import Outcome
from clcalib.sweep.key import code_version, data_digest, keys, model_digest

_LEFT_OUT = {"units", "policy", "float_parts"}  # long, and in the run's own folder


class _Payload(BaseModel):
    key: str
    configuration: RunConfig


def payload_of(config: RunConfig, key: str) -> str:
    """What ``carry_out`` is called with."""
    return _Payload(key=key, configuration=config).model_dump_json()


def carry_out(payload: str) -> Outcome:
    """Carry out one run, or what is left of it.

    Raises:
        ArgumentError: code, model or images are not those that the run was planned with.
        ClcalibError: see ``run.run``.
    """
    told = _Payload.model_validate_json(payload, strict=True)
    config = told.configuration
    own, _, _ = keys(config, code_version(), model_digest(config.model), data_digest(config))
    if own != told.key:
        got = f"others ({code_version()})"
        remedy = "they changed meanwhile, or this machine has others; start the sweep again"
        raise ArgumentError("code, model and images", "those that the sweep was started with", got, remedy)
    record = _record(config)
    digest = hashlib.sha256((config.run.out / TENSORS).read_bytes()).hexdigest()
    return Outcome(digest, record.model_dump(mode="json", exclude=_LEFT_OUT))


def _record(config: RunConfig) -> RunRecord:
    folder = config.run.out
    if is_finished(folder):
        return read_record(folder / RECORD_FILE)  # the worker died between the run's end and its entry
    try:
        return run(config, SilentObserver(), is_resumed=has_unfinished(folder))
    except ResumeError:  # begun on another machine, say
        return run(config, SilentObserver())
