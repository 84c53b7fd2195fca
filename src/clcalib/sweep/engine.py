"""Addresses and engines: how SQLite and PostgreSQL are opened, and what their errors mean to a user."""

from __future__ import annotations

import contextlib
import errno
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import sqlalchemy as sa
from sqlalchemy import exc
from sqlalchemy.engine import Connection, Engine, make_url
from sqlalchemy.pool import NullPool

from clcalib.errors import DatabaseError, StorageError

BUSY = 60.0  # seconds of waiting for other writers, and for a server that comes back


def database_url(address: str | Path) -> str:
    """The URL of a database: of a path that of an SQLite file, of ``postgresql://`` the one with the driver's name."""
    text = str(address)
    if "://" not in text:
        return sa.URL.create("sqlite", database=str(Path(text).absolute())).render_as_string()
    try:
        url = make_url(text)
    except exc.ArgumentError:
        raise DatabaseError(_unusable(text.partition(":")[0])) from None
    if url.drivername == "postgresql":
        url = url.set(drivername="postgresql+psycopg")
    if url.drivername not in ("sqlite", "postgresql+psycopg"):
        raise DatabaseError(_unusable(url.drivername))
    return url.render_as_string(hide_password=False)


def _unusable(kind: str) -> str:
    return f"a database: expected a path, or a URL such as postgresql://user@host/name, got one that begins with {kind}"


def make_engine(address: str | Path) -> Engine:
    """An engine without a pool: each step has a connection of its own, so nothing is left to a process that is forked.

    Raises:
        DatabaseError: the address is none.
    """
    url = make_url(database_url(address))
    if url.drivername != "sqlite":
        return sa.create_engine(url, poolclass=NullPool, connect_args={"connect_timeout": 10})
    engine = sa.create_engine(url, poolclass=NullPool, connect_args={"timeout": BUSY, "isolation_level": None})

    def settle(connection: sqlite3.Connection, _: object) -> None:
        connection.execute(f"PRAGMA busy_timeout = {BUSY * 1000:.0f}")
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute("PRAGMA foreign_keys = ON")

    def begin(connection: Connection) -> None:
        # A writer takes its place at once, so that it waits in line instead of failing at its first change.
        is_reading = connection.get_execution_options().get("is_reading")
        connection.exec_driver_sql("BEGIN" if is_reading else "BEGIN IMMEDIATE")

    sa.event.listen(engine, "connect", settle)
    sa.event.listen(engine, "begin", begin)
    return engine


def may_pass(error: exc.DBAPIError) -> bool:
    """Whether what went wrong can be other in a moment."""
    if isinstance(error.orig, sqlite3.Error):
        return any(word in str(error.orig) for word in ("locked", "busy"))
    return isinstance(error, exc.OperationalError)


@contextlib.contextmanager
def told(name: object) -> Iterator[None]:
    """Turn what SQLAlchemy raises into an error that says what to do."""
    try:
        yield
    except exc.DBAPIError as error:
        reason = " ".join(str(error.orig).split())
        if "disk is full" in reason:
            raise StorageError(errno.ENOSPC, f"{name} could not be written: {reason}; make room") from None
        if isinstance(error.orig, sqlite3.Error):
            remedy = "name another file (--database)"
        else:
            remedy = "see that the server runs, and that the address (--database) is right"
        raise DatabaseError(f"{name} cannot be used: {reason}; {remedy}") from None
