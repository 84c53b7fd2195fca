"""Databases: an SQLite file, and a PostgreSQL server of Debian's packages that is started for the tests."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

import clcalib
from tests.sweep.postgresql_server import initdb, new_database, running

_ROOT = Path(__file__).parent.parent.parent
# Before Ray is imported, so that the nodes of the tests keep to the loopback, too.
RAY_CLUSTERS = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"
os.environ[RAY_CLUSTERS] = "0"


@pytest.fixture(scope="session")
def postgresql_server() -> Iterator[str]:
    """The address of a server without the name of a database."""
    program = initdb()
    if program is None:
        pytest.skip("there is no PostgreSQL server here; Debian's package is postgresql")
    pytest.importorskip("psycopg", reason="psycopg is not installed")
    with running(program) as address:
        yield address


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.slow)])
def address_of_drivers(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The same for tests that start several drivers, each of which takes seconds."""
    return _empty(request, tmp_path)


@pytest.fixture(params=["sqlite", "postgresql"])
def address(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty database, of either kind."""
    return _empty(request, tmp_path)


def _empty(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    pytest.importorskip("sqlalchemy", reason="SQLAlchemy is not installed")
    if request.param == "sqlite":
        return str(tmp_path / "sweep.db")
    return new_database(request.getfixturevalue("postgresql_server"))


@pytest.fixture
def python_path() -> str:
    """A PYTHONPATH of the package and the tests."""
    return os.pathsep.join([str(Path(clcalib.__file__).parent.parent), str(_ROOT)])
