"""The truth about a sweep: which runs are wanted, who is at which, and what came of them.

Every step is one transaction that is on the disk when its function returns: SQLite in WAL mode with synchronous=FULL
on one machine, PostgreSQL for several.  A step may be done twice, as after a lost connection, and changes nothing then.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import sqlalchemy as sa
from sqlalchemy import exc
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import Connection, Engine

from clcalib.errors import DatabaseError
from clcalib.sweep.engine import BUSY, make_engine, may_pass, told
from clcalib.sweep.jobs import Entry, Outcome
from clcalib.sweep.migrating import migrate
from clcalib.sweep.models import DONE, FAILED, QUEUED, RUNNING, Base, Result, Run

_PAUSE = 0.2
_AT_ONCE = 500  # rows of an insertion
_HIDDEN = {"configuration", "record", "claim", "lease_until", "worker", "added_at"}
_MEASURES = ("float_top1", "nearest_top1", "quantized_top1", "agreement", "seconds")

Value = TypeVar("Value")


class Database:
    """A sweep's database, opened by ``Database.open``.  Each step has a connection of its own.

    Attributes:
        url: its address, with the password if it has one; ``name`` is without.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self.url = engine.url.render_as_string(hide_password=False)
        self.name = engine.url.database if self.is_file else engine.url.render_as_string(hide_password=True)

    @classmethod
    def open(cls, address: str | Path, *, is_new: bool = True, is_checked: bool = True) -> Database:
        """Open a database, and bring its tables to what this version needs.

        Args:
            address: a path of an SQLite file, or a URL such as ``postgresql://user@host/name``.
            is_new: whether it may be an empty one, or a file that does not exist.
            is_checked: whether its tables are looked at; a worker, whose driver has done it, needs not.

        Raises:
            DatabaseError: it cannot be opened or reached, is no database of a sweep, or of a newer version.
        """
        database = cls(make_engine(address))
        if not is_new and database.is_file and not Path(str(database.name)).is_file():
            raise DatabaseError(f"there is no database {database.name}; clcalib sweep makes one")
        if is_new and database.is_file:
            _make_folder(Path(str(database.name)))
        if is_checked:
            with told(database.name):
                database._retried(lambda connection: migrate(connection, database.name, is_new=is_new), patience=5.0)
        return database

    @property
    def is_file(self) -> bool:
        """Whether it is an SQLite file, which only this machine can use."""
        return self._engine.dialect.name == "sqlite"

    def add(self, entries: Sequence[Entry]) -> None:
        """Have runs in the table; those that it has keep their state, and one that failed is queued again."""
        self._write(lambda connection: self._add(connection, entries))

    def _add(self, connection: Connection, entries: Sequence[Entry]) -> None:
        known = {key: state for key, state in connection.execute(sa.select(Run.key, Run.state))}
        now = _now(connection)
        fresh = [
            {name: value for name, value in vars(entry).items() if name != "payload"}
            | {"state": QUEUED, "attempts": 0, "added_at": now}
            for entry in entries
            if entry.key not in known
        ]
        insert = _insert(connection, Run)
        for start in range(0, len(fresh), _AT_ONCE):
            connection.execute(insert.on_conflict_do_nothing(), fresh[start : start + _AT_ONCE])
        again = [entry.key for entry in entries if known.get(entry.key) == FAILED]
        for start in range(0, len(again), _AT_ONCE):
            update = sa.update(Run).where(Run.key.in_(again[start : start + _AT_ONCE]), Run.state == FAILED)
            connection.execute(update.values(state=QUEUED, attempts=0, message=None))

    def claim(self, key: str, token: str, worker: str, lease: float) -> bool:
        """Take a run that nobody is at, or whose worker is silent; whether that went well."""

        def take(connection: Connection) -> bool:
            now = _now(connection)
            if connection.scalar(sa.select(Run.claim).where(Run.key == key)) == token:
                return True  # taken before the connection was lost
            update = sa.update(Run).where(Run.key == key, _is_free(now))
            values = {"state": RUNNING, "claim": token, "worker": worker, "lease_until": now + lease}
            return _changed(connection, update.values(attempts=Run.attempts + 1, **values))

        return self._write(take)

    def renew(self, key: str, token: str, lease: float) -> bool:
        """Say that a worker lives; whether the run is still its own."""

        def extend(connection: Connection) -> bool:
            update = sa.update(Run).where(Run.key == key, Run.claim == token, Run.state == RUNNING)
            return _changed(connection, update.values(lease_until=_now(connection) + lease))

        return self._write(extend)

    def release(
        self, key: str, token: str, *, is_counted: bool, message: str | None = None, pause: float = 0.0
    ) -> bool:
        """Give a run back.

        Args:
            key: of the run.
            token: of who has it; of another's nothing changes.
            is_counted: whether the attempt counts, as one that died does.
            message: what happened.
            pause: seconds until it can be taken again.
        """

        def give_back(connection: Connection) -> bool:
            update = sa.update(Run).where(Run.key == key, Run.claim == token, Run.state == RUNNING)
            values: dict[str, Any] = {"claim": None, "message": message}
            values |= {"lease_until": _now(connection) + pause} if pause else {"state": QUEUED, "lease_until": None}
            values |= {} if is_counted else {"attempts": Run.attempts - 1}
            return _changed(connection, update.values(values))

        return self._write(give_back)

    def finish(self, key: str, token: str, worker: str, outcome: Outcome) -> bool:
        """Keep a result, once: whether this was the one that is kept.

        Who lost its claim meanwhile may still be the first to have the result, which is the same.
        """

        def keep(connection: Connection) -> bool:
            now = _now(connection)
            measures = {name: outcome.record.get(name) for name in _MEASURES}
            record = json.dumps(outcome.record, allow_nan=False)
            row = {"key": key, "digest": outcome.digest, "record": record, "worker": worker, "added_at": now}
            insert = _insert(connection, Result).values(**row, **measures).on_conflict_do_nothing()
            is_first = connection.execute(insert.returning(Result.key)).first() is not None
            update = sa.update(Run).where(Run.key == key)
            connection.execute(update.values(state=DONE, claim=None, lease_until=None, message=None))
            return is_first

        return self._write(keep)

    def fail(self, key: str, token: str, message: str) -> bool:
        """Give a run up, with the reason."""

        def give_up(connection: Connection) -> bool:
            update = sa.update(Run).where(Run.key == key, Run.claim == token, Run.state == RUNNING)
            return _changed(connection, update.values(state=FAILED, claim=None, lease_until=None, message=message))

        return self._write(give_up)

    def give_up(self, most: int) -> None:
        """Give up the runs that were begun ``most`` times and never ended."""

        def bury(connection: Connection) -> None:
            last = sa.func.coalesce(Run.message, "its worker fell silent")
            message = sa.literal(f"was begun {most} times and never ended; the last time: ") + last
            update = sa.update(Run).where(Run.attempts >= most, _is_free(_now(connection)))
            connection.execute(update.values(state=FAILED, claim=None, lease_until=None, message=message))

        self._write(bury)

    def states(self) -> dict[str, str]:
        """Key -> state of every run; one whose worker is silent counts as queued."""

        def look(connection: Connection) -> dict[str, str]:
            now = _now(connection)
            rows = connection.execute(sa.select(Run.key, Run.state, Run.lease_until))
            return {
                key: QUEUED if state == RUNNING and lease is not None and lease < now else state
                for key, state, lease in rows
            }

        return self._read(look)

    def failures(self) -> dict[str, str]:
        """Key -> why, of every run that failed."""
        query = sa.select(Run.key, Run.message).where(Run.state == FAILED)
        return self._read(lambda connection: {key: message or "" for key, message in connection.execute(query)})

    def rows(self) -> list[dict[str, Any]]:
        """Every run with what is known of its result, without its configuration and its record."""
        runs, results = Base.metadata.tables["runs"], Base.metadata.tables["results"]
        shown = [column for column in runs.columns if column.name not in _HIDDEN]
        shown += [column for column in results.columns if column.name not in _HIDDEN | {"key"}]
        query = sa.select(*shown).select_from(runs.outerjoin(results, results.c.key == runs.c.key))
        query = query.order_by(runs.c.added_at, runs.c.label)
        return self._read(lambda connection: [dict(row._mapping) for row in connection.execute(query)])

    def _write(self, step: Callable[[Connection], Value]) -> Value:
        with told(self.name):
            return self._retried(step)

    def _read(self, step: Callable[[Connection], Value]) -> Value:
        with told(self.name):
            return self._retried(step, is_reading=True)

    def _retried(
        self, step: Callable[[Connection], Value], *, patience: float = BUSY, is_reading: bool = False
    ) -> Value:
        """One transaction; again where the database was busy or the server away, which come back."""
        end, pause = time.monotonic() + patience, _PAUSE
        while True:
            try:
                with self._engine.connect().execution_options(is_reading=is_reading) as connection, connection.begin():
                    return step(connection)
            except (exc.OperationalError, exc.InterfaceError) as error:
                if not may_pass(error) or time.monotonic() > end:
                    raise
            time.sleep(pause)
            pause = min(2 * pause, 5.0)


def _make_folder(file: Path) -> None:
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DatabaseError(f"{file} cannot be made: {error.strerror}; name another folder") from None


def _insert(connection: Connection, table: type[Run] | type[Result]) -> Any:
    """An INSERT that can leave a row be that is there; each of the two has its own."""
    return sqlite.insert(table) if connection.dialect.name == "sqlite" else postgresql.insert(table)


def _is_free(now: float) -> sa.ColumnElement[bool]:
    """Whether nobody is at a run, or its worker is silent."""
    return sa.or_(Run.state == QUEUED, sa.and_(Run.state == RUNNING, Run.lease_until < now))


def _changed(connection: Connection, statement: Any) -> bool:
    return bool(connection.execute(statement).rowcount == 1)


def _now(connection: Connection) -> float:
    """Of the one clock that all who use the database share."""
    if connection.dialect.name == "sqlite":
        return time.time()
    return float(connection.scalar(sa.text("SELECT extract(epoch FROM clock_timestamp())")) or 0.0)
