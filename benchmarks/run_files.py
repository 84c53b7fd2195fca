"""What grids of runs share: where a row is kept, who makes it, and how a recipe is told in it."""

from __future__ import annotations

import contextlib
import fcntl
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import clcalib


def path_of(key: str, seed: int, folder: Path) -> Path:
    return folder / f"{key}-seed{seed}.json"


@contextlib.contextmanager
def claimed(path: Path) -> Iterator[bool]:
    """Whether this process is to make the file: nobody has made it, and nobody is making it.

    The claim is a lock on a file beside it, which the system gives up when its holder dies.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    lock = path.with_suffix(".lock")
    with lock.open("w") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        # Another may have finished between the look at the folder and the lock.
        yield not path.exists()
        if path.exists():
            lock.unlink(missing_ok=True)


def described(recipe: clcalib.Recipe) -> dict[str, Any]:
    """What the phases are trained at, for the record."""
    rates = ("rounding_rate", "weight_scale_rate", "activation_rate")
    phases = [
        {"name": phase.name, "steps": phase.steps, **{name: getattr(phase, name, None) for name in rates}}
        for phase in recipe.phases
    ]
    return {"name": recipe.name, "phases": phases}
