"""The database: each run is one row, each result is kept once, on SQLite and on PostgreSQL alike."""

from __future__ import annotations

import sqlite3
import threading
from pathlib import Path

import pytest

pytest.importorskip("sqlalchemy", reason="SQLAlchemy is not installed")

import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext

from clcalib.errors import DatabaseError
from clcalib.sweep.database import Database
from clcalib.sweep.engine import database_url
from clcalib.sweep.jobs import Outcome
from clcalib.sweep.models import Base
from tests.sweep.small_jobs import entry

FIRST, SECOND = entry(1), entry(2)
OVER = -1.0  # a lease that has ended already
OUTCOME = Outcome("d" * 64, {"quantized_top1": 0.75, "agreement": None, "seconds": 2.0, "recipe": "qdrop"})


@pytest.fixture
def database(address: str) -> Database:
    found = Database.open(address)
    found.add([FIRST, SECOND])
    return found


def row(database: Database, key: str = FIRST.key) -> dict[str, object]:
    return next(row for row in database.rows() if row["key"] == key)


def test_the_migrations_make_the_tables_of_the_models(database: Database) -> None:
    with database._engine.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), Base.metadata) == []
    assert Database.open(database.url).states() == {FIRST.key: "queued", SECOND.key: "queued"}


def test_one_of_many_gets_a_run(database: Database) -> None:
    taken: list[int] = []
    start = threading.Barrier(4)

    def take(number: int) -> None:
        start.wait()
        if database.claim(FIRST.key, f"token {number}", "me", 60.0):
            taken.append(number)

    threads = [threading.Thread(target=take, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(taken) == 1
    assert database.claim(FIRST.key, f"token {taken[0]}", "me", 60.0)  # its own, as after a lost connection
    assert row(database)["attempts"] == 1


def test_a_silent_worker_loses_its_run_and_its_result_still_counts_once(database: Database) -> None:
    assert database.claim(FIRST.key, "slow", "a", 60.0)
    assert not database.claim(FIRST.key, "quick", "b", 60.0)
    assert database.renew(FIRST.key, "slow", OVER)
    assert database.states()[FIRST.key] == "queued"
    assert database.claim(FIRST.key, "quick", "b", 60.0)
    assert not database.renew(FIRST.key, "slow", 60.0)
    assert not database.release(FIRST.key, "slow", is_counted=True)
    assert not database.fail(FIRST.key, "slow", "no")
    assert database.finish(FIRST.key, "slow", "a", OUTCOME)
    assert not database.finish(FIRST.key, "quick", "b", OUTCOME)
    assert not database.claim(FIRST.key, "third", "c", 60.0)
    found = row(database)
    assert (found["state"], found["quantized_top1"], found["digest"], found["attempts"]) == ("done", 0.75, "d" * 64, 2)


def test_a_beating_heart_keeps_a_run(database: Database) -> None:
    database.claim(FIRST.key, "mine", "a", OVER)
    assert database.renew(FIRST.key, "mine", 60.0)
    assert not database.claim(FIRST.key, "other", "b", 60.0)


def test_what_died_counts_and_what_was_stopped_does_not(database: Database) -> None:
    for is_counted, attempts in ((False, 0), (True, 1), (False, 1), (True, 2)):
        assert database.claim(FIRST.key, "mine", "a", 60.0)
        assert database.release(FIRST.key, "mine", is_counted=is_counted, message="why")
        assert row(database)["attempts"] == attempts
    assert (row(database)["state"], row(database)["message"]) == ("queued", "why")


def test_a_run_that_kills_its_workers_is_given_up_and_tried_again_by_the_next_sweep(database: Database) -> None:
    for number in range(3):
        assert database.claim(FIRST.key, f"token {number}", "a", 60.0)
        database.give_up(3)
        assert database.release(FIRST.key, f"token {number}", is_counted=True, message="killed by SIGKILL")
    assert database.states()[FIRST.key] == "queued"
    database.give_up(3)
    told = "was begun 3 times and never ended; the last time: killed by SIGKILL"
    assert database.failures() == {FIRST.key: told}
    database.claim(SECOND.key, "mine", "a", 60.0)
    database.finish(SECOND.key, "mine", "a", OUTCOME)
    database.add([FIRST, SECOND])
    assert database.states() == {FIRST.key: "queued", SECOND.key: "done"}
    assert row(database)["attempts"] == 0


def test_a_pause_is_waited_for(database: Database) -> None:
    database.claim(FIRST.key, "mine", "a", 60.0)
    database.release(FIRST.key, "mine", is_counted=False, pause=60.0)
    assert not database.claim(FIRST.key, "other", "b", 60.0)
    database.claim(SECOND.key, "mine", "a", 60.0)
    database.release(SECOND.key, "mine", is_counted=False, pause=OVER)
    assert database.claim(SECOND.key, "other", "b", 60.0)


def test_sqlite_writes_through_to_the_disk(tmp_path: Path) -> None:
    database = Database.open(tmp_path / "new" / "sweep.db")
    with database._engine.connect() as connection:
        told = [connection.execute(sa.text(f"PRAGMA {name}")).scalar() for name in ("journal_mode", "synchronous")]
    assert told == ["wal", 2]  # 2 is FULL
    assert database.is_file


def test_a_newer_database_is_refused(address: str) -> None:
    database = Database.open(address)
    with database._engine.begin() as connection:
        connection.execute(sa.text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(DatabaseError, match="of a newer clcalib .* version 9999, here 0001 is known"):
        Database.open(address)


def test_what_is_no_database_of_a_sweep_is_refused(tmp_path: Path) -> None:
    other = tmp_path / "other.db"
    with sqlite3.connect(other) as connection:
        connection.execute("CREATE TABLE runs (name TEXT)")
    connection.close()
    with pytest.raises(DatabaseError, match="has tables that are not a sweep's"):
        Database.open(other)
    text = tmp_path / "text.db"
    text.write_text("no database at all, but a text that is long enough to be looked at" * 20)
    with pytest.raises(DatabaseError, match=r"cannot be used: file is not a database; name another file"):
        Database.open(text)
    with pytest.raises(DatabaseError, match="there is no database"):
        Database.open(tmp_path / "missing.db", is_new=False)
    empty = tmp_path / "empty.db"
    empty.touch()
    with pytest.raises(DatabaseError, match="is not the database of a sweep"):
        Database.open(empty, is_new=False)


def test_addresses(tmp_path: Path) -> None:
    assert database_url(tmp_path / "a.db") == f"sqlite:///{tmp_path / 'a.db'}"
    assert database_url("postgresql://me:word@host/name") == "postgresql+psycopg://me:word@host/name"
    for odd in ("mysql://host/name", "postgresql+psycopg2://host/name"):
        with pytest.raises(DatabaseError, match="expected a path, or a URL such as"):
            database_url(odd)


def test_a_server_that_is_not_there_is_told_without_its_password() -> None:
    pytest.importorskip("psycopg", reason="psycopg is not installed")
    with pytest.raises(DatabaseError, match=r"see that the server runs") as told:
        Database.open("postgresql://me:secret@127.0.0.1:1/name")
    assert "secret" not in str(told.value)
    assert "me:***@127.0.0.1:1/name" in str(told.value)
