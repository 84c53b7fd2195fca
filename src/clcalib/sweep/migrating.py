"""Bringing a database to the tables of this version, under a lock, by Alembic."""

from __future__ import annotations

from pathlib import Path

import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy.engine import Connection

from clcalib.errors import DatabaseError, EmptyDatabaseError

FOLDER = Path(__file__).parent / "migrations"
_LOCK = 0x636C63616C6962  # of PostgreSQL, for whoever changes the tables: "clcalib"


def migrate(connection: Connection, name: object, *, is_new: bool = True) -> None:
    """Make the tables in an empty database, or change those of an older version.

    Args:
        connection: in a transaction that ends with this.
        name: what errors call the database.
        is_new: whether it may be an empty one.

    Raises:
        DatabaseError: it is of a newer version, or has tables that are not a sweep's.
        EmptyDatabaseError: it is empty, and must not be.
    """
    if connection.dialect.name == "postgresql":
        connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_LOCK)))
    config = Config(attributes={"connection": connection})
    config.set_main_option("script_location", str(FOLDER).replace("%", "%%"))
    scripts = ScriptDirectory.from_config(config)
    known = [script.revision for script in scripts.walk_revisions()]
    current = MigrationContext.configure(connection).get_current_revision()
    if current == known[0]:
        return
    if current is not None and current not in known:
        raise DatabaseError(
            f"{name} is a database of a newer clcalib (its tables are of version {current}, here {known[0]} is known); "
            "install that one, or name another database (--database)"
        )
    tables = sa.inspect(connection).get_table_names()
    if current is None and {"runs", "results"} & set(tables):
        raise DatabaseError(f"{name} has tables that are not a sweep's; name another database (--database)")
    if current is None and not is_new:
        raise EmptyDatabaseError(f"{name} is not the database of a sweep; clcalib sweep makes one")
    command.upgrade(config, "head")
