"""What a page is made of: the files of a run's folder, each checked as what may come from anyone."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from clcalib.errors import ArgumentError, CheckpointError, UnusableFileError
from clcalib.reading.content import read_json
from clcalib.report.evidence import EVIDENCE_FILE, Evidence, read_evidence
from clcalib.report.record import RunRecord, read_record
from clcalib.report.trace import TRACE_FILE, RunTrace, read_trace

RECORD_FILE, CONFIG_FILE, WEIGHTS_FILE = "run.json", "config.json", "model.safetensors"

Found = TypeVar("Found")


@dataclasses.dataclass(frozen=True)
class RunFolder:
    """What a run left.

    Attributes:
        path: of the folder.
        record: of ``run.json``.
        trace, evidence: of ``trace.json`` and ``report.json``; None where there is no such file.
        config: of ``config.json``, section -> key -> value; empty where there is none.
        weights_bytes: the size of ``model.safetensors``, or None.
    """

    path: Path
    record: RunRecord
    trace: RunTrace | None = None
    evidence: Evidence | None = None
    config: Mapping[str, Mapping[str, Any]] = dataclasses.field(default_factory=dict)
    weights_bytes: int | None = None

    @classmethod
    def read(cls, folder: str | Path) -> RunFolder:
        """Read the folder.

        Raises:
            ArgumentError: it is no folder of a run.
            CheckpointError: a file is damaged; the message names it.
            NumericalError: a number in a file is not finite.
        """
        folder = Path(folder)
        if not (folder / RECORD_FILE).is_file():
            got = f"{folder}, which has no {RECORD_FILE}" if folder.is_dir() else f"{folder}, which is no folder"
            raise ArgumentError("OUT", "the output folder of a finished run", got, "give what --out was")
        return cls(
            path=folder,
            record=read_record(folder / RECORD_FILE),
            trace=_if_there(folder / TRACE_FILE, read_trace),
            evidence=_if_there(folder / EVIDENCE_FILE, read_evidence),
            config=_if_there(folder / CONFIG_FILE, _read_config) or {},
            weights_bytes=_size(folder / WEIGHTS_FILE),
        )

    @property
    def name(self) -> str:
        """What the folder is called."""
        return self.path.resolve().name

    @property
    def model_name(self) -> str:
        """What the network is called: the callable that builds it, or what is known instead."""
        entry = str(self.config.get("model", {}).get("entry", ""))
        part = self.record.submodule
        name = entry.rpartition(":")[2] or "a network"
        return f"{name}, {part}" if part else name

    def setting(self, section: str, key: str) -> object:
        """A value of the configuration, or None."""
        return self.config.get(section, {}).get(key)


def _if_there(path: Path, read: Callable[[Path], Found]) -> Found | None:
    return read(path) if path.is_file() else None


def _size(path: Path) -> int | None:
    return path.stat().st_size if path.is_file() else None


def _read_config(path: Path) -> dict[str, dict[str, Any]]:
    try:
        values = read_json(path)
    except UnusableFileError as error:
        raise CheckpointError(f"{error}; delete it, and the page leaves out what it says") from None
    if not isinstance(values, dict):
        raise CheckpointError(f"{path}: not a configuration; delete it, and the page leaves out what it says")
    return {section: table for section, table in values.items() if isinstance(table, dict)}
