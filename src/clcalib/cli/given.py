"""The flags of a command, put together by what they are about: what its action is called with."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from clcalib.errors import ArgumentError
from clcalib.team.place import Place

ENVIRONMENT = "env"
IMAGES, UNITS = "images", "units"  # what workers have parts of
Format = Literal["table", "csv", "markdown", "html"]
Pool = Literal["processes", "ray"]


@dataclasses.dataclass(frozen=True)
class ModelFlags:
    """The flags of a network."""

    entry: str | None
    weights: Path | None
    is_pretrained: bool = False
    submodule: str | None = None


@dataclasses.dataclass(frozen=True)
class WidthFlags:
    """The flags of widths and units."""

    bits: Sequence[str] | None = None
    floats: Sequence[str] | None = None
    edge_bits: str | None = None
    unit_patterns: Sequence[str] | None = None
    target: str | None = None
    weight_bits: int | None = None
    activation_bits: int | None = None


@dataclasses.dataclass(frozen=True)
class RunFlags:
    """The flags of a run that become its configuration.

    Attributes:
        network, widths: with sections of their own.
        sections: section -> key -> value, of all others.
        additions: sections that are added or taken away.
        settings: assignments of ``--set``.
    """

    network: ModelFlags
    widths: WidthFlags
    sections: dict[str, dict[str, Any]]
    additions: dict[str, bool | None]
    settings: Sequence[str] | None


@dataclasses.dataclass(frozen=True)
class FlagsOverSaved:
    """The flags that win over the configuration in a folder of results."""

    model: ModelFlags
    evaluation: Path | None
    settings: Sequence[str] | None
    threads: int | None
    device: str | None = None


@dataclasses.dataclass(frozen=True)
class SweepFlags:
    """The flags of a sweep.

    Attributes:
        pool: where runs are carried out.
        workers: at a time; None: as many as there are cores.
        only, settings, out, database, ray_address: as they were given.
    """

    file: Path
    pool: Pool
    workers: int | None
    only: Sequence[str]
    settings: Sequence[str]
    out: Path | None
    database: str | None
    ray_address: str | None


@dataclasses.dataclass(frozen=True)
class WorkerFlags:
    """The flags of workers, as they were given."""

    workers: str | None = None
    rendezvous: str | None = None
    rank: int | None = None
    wait: float | None = None
    split: str | None = None

    @property
    def is_by_units(self) -> bool:
        """Whether the workers have units of the network, and not images."""
        return self.split == UNITS

    def place(self, environment: Mapping[str, str] = os.environ) -> Place | None:
        """Where the workers are; None where the run is not shared.

        Raises:
            ArgumentError: flags are missing, or do not go together.
        """
        remote = {"--rendezvous": self.rendezvous, "--rank": self.rank}
        given = {**remote, "--wait": self.wait, "--split": self.split}
        if self.split not in (None, IMAGES, UNITS):
            raise ArgumentError("--split", f"{IMAGES} or {UNITS}", repr(self.split))
        present = [name for name, value in given.items() if value is not None]
        if self.workers is None:
            if present:
                raise ArgumentError(present[0], "--workers beside it", "none", "say how many workers there are")
            return None
        if self.wait is not None and not self.wait > 0:
            raise ArgumentError("--wait", "seconds above 0", self.wait)
        if self.workers.strip().lower() == ENVIRONMENT:
            if alone := [name for name in remote if remote[name] is not None]:
                remedy = "leave it out; torchrun has said it"
                raise ArgumentError(alone[0], "nothing beside --workers env", remote[alone[0]], remedy)
            return Place.from_environment(environment)
        workers = self._number()
        if self.rendezvous is None and self.rank is None:
            if self.wait is not None:
                raise ArgumentError("--wait", "--rendezvous beside it", "none", "workers of one machine do not wait")
            return Place.here(workers)
        if self.rendezvous is None or self.rank is None:
            names = ("--rendezvous", "--rank") if self.rendezvous is None else ("--rank", "--rendezvous")
            remedy = "give both, for workers on several machines, or none of them"
            raise ArgumentError(names[0], f"a value beside {names[1]}", "none", remedy)
        return Place.among_machines(workers, self.rank, self.rendezvous)

    def _number(self) -> int:
        text = (self.workers or "").strip()
        if not (text.isascii() and text.isdecimal() and int(text) > 0):
            raise ArgumentError("--workers", "a whole number of workers, at least 1, or env", repr(self.workers))
        return int(text)
