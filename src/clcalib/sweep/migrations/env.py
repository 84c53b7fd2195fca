"""What Alembic runs: the migrations, over the connection that ``sweep.database`` has opened and locked."""

from __future__ import annotations

from alembic import context

from clcalib.sweep.models import Base

context.configure(connection=context.config.attributes["connection"], target_metadata=Base.metadata)
with context.begin_transaction():
    context.run_migrations()
