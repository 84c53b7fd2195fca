"""What the driver of a sweep, its workers and its database hand to each other: plain values."""

from __future__ import annotations

import dataclasses
import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from clcalib.errors import MissingPackageError

LEASE = 60.0  # seconds that a worker may be silent
DATABASE_FILE = "sweep.db"
NONE = "none"  # the contrastive setting that is always there


@dataclasses.dataclass(frozen=True)
class Entry:
    """A run that is wanted: what the database keeps of it, see ``models.Run``, and what it is computed from.

    Attributes:
        payload: what the job is called with.
    """

    key: str
    label: str
    network: str
    widths: str
    recipe: str
    contrastive: str
    seed: int
    cell: str
    pair: str
    configuration: str
    code: str
    model_digest: str
    data_digest: str
    payload: str


@dataclasses.dataclass(frozen=True)
class Plan:
    """A sweep, ready to be driven.

    Attributes:
        out: the folder of all runs.
        database: its address.
        lease: seconds of silence after which a worker is taken for dead.
        attempts: how often a run is begun whose worker dies.
        entries: the runs, seed by seed, so that what there is at any time is of as many cells as possible.
        devices: what they compute on.
    """

    out: Path
    database: str
    lease: float
    attempts: int
    entries: tuple[Entry, ...]
    devices: frozenset[str]


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What a job gives: the digest of its result, and a record of plain values."""

    digest: str
    record: dict[str, Any]


Job = Callable[[str], Outcome]


@dataclasses.dataclass(frozen=True)
class Task:
    """A job on its way to a worker.

    Attributes:
        key: of the run; payload: what the job is called with.
        job: a function of a module, so that it can be sent.
        database: the address of it.
        token: of this very attempt; lease: how long a worker may be silent, in seconds.
    """

    key: str
    payload: str
    job: Job
    database: str
    token: str
    lease: float


@dataclasses.dataclass(frozen=True)
class Ended:
    """A task is over.  What came of the run, the database says.

    Attributes:
        message: how its worker died, or None where it ended by itself.
    """

    task: Task
    message: str | None = None


class Executor(Protocol):
    """Where tasks are carried out; processes of this machine, or Ray."""

    @property
    def slots(self) -> int:
        """How many tasks can run at a time now; nodes may come and go."""

    def submit(self, task: Task) -> None:
        """Begin a task."""

    def ended(self, timeout: float) -> list[Ended]:
        """The tasks that ended since the last call; waits for the first one."""

    def stop(self) -> list[Ended]:
        """Ask what runs to save its state and to end, and wait for that; what does not is killed."""


def require_packages(database: str, pool: str) -> None:
    """Raise where a package is missing, before anything begins.

    Raises:
        MissingPackageError: it names all that is missing, and how to install it.
    """
    needed = {"sqlalchemy": "sweep", "alembic": "sweep"}
    needed |= {"psycopg": "postgresql"} if database.startswith("postgresql") else {}
    needed |= {"ray": "ray"} if pool == "ray" else {}
    missing = {name: extra for name, extra in needed.items() if importlib.util.find_spec(name) is None}
    if missing:
        extras = ",".join(dict.fromkeys(missing.values()))
        raise MissingPackageError(
            f'a sweep needs {" and ".join(missing)}; install what it needs with: pip install "clcalib[{extras}]"'
        )
