"""The one place that imports what needs SQLAlchemy, which not every machine has."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from clcalib.sweep.jobs import require_packages

if TYPE_CHECKING:
    from clcalib.sweep.database import Database


def open_database(address: str | Path, *, is_new: bool = True, is_checked: bool = True) -> Database:
    """``Database.open``, where SQLAlchemy is installed.

    Raises:
        MissingPackageError: it is not.
        DatabaseError: see there.
    """
    require_packages(str(address), pool="processes")
    from clcalib.sweep.database import Database

    return Database.open(address, is_new=is_new, is_checked=is_checked)
