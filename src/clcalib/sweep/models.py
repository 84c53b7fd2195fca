"""The two tables of a sweep's database; the same for SQLite and for PostgreSQL.

A run is one row for ever: its key is the hash of all that its result depends on.  Its result is one row of another
table, inserted once, so that what is finished is never touched again.
"""

from __future__ import annotations

from sqlalchemy import CheckConstraint, Double, ForeignKey, Integer, String, Text
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

QUEUED, RUNNING, DONE, FAILED = "queued", "running", "done", "failed"


class Base(DeclarativeBase):
    """What Alembic compares the tables with."""


class Run(Base):
    """A run that is wanted, and who is at it.

    Attributes:
        key: sha256 of configuration, code, model and data.
        label: what people call it; network, widths, recipe and contrastive are its parts, as the sweep file names them.
        cell: the hash without the seed; pair: the hash without the contrastive term.
        configuration: as JSON.
        state: queued, running, done or failed.
        attempts: how often it was begun, without those that ended because they were asked to.
        claim: the token of who is at it; lease_until: until when, in seconds since 1970, unless renewed.
        worker: the machine and process of it.
        message: why it failed, or died last.
    """

    __tablename__ = "runs"
    __table_args__ = (CheckConstraint("state IN ('queued', 'running', 'done', 'failed')", name="a_known_state"),)

    key: Mapped[str] = mapped_column(String(64), primary_key=True)
    label: Mapped[str] = mapped_column(Text)
    network: Mapped[str] = mapped_column(Text)
    widths: Mapped[str] = mapped_column(Text)
    recipe: Mapped[str] = mapped_column(Text)
    contrastive: Mapped[str] = mapped_column(Text)
    seed: Mapped[int] = mapped_column(Integer)
    cell: Mapped[str] = mapped_column(String(64))
    pair: Mapped[str] = mapped_column(String(64))
    configuration: Mapped[str] = mapped_column(Text)
    code: Mapped[str] = mapped_column(Text)
    model_digest: Mapped[str] = mapped_column(String(64))
    data_digest: Mapped[str] = mapped_column(String(64))
    state: Mapped[str] = mapped_column(String(8), default=QUEUED, index=True)
    attempts: Mapped[int] = mapped_column(Integer, default=0)
    claim: Mapped[str | None] = mapped_column(String(32))
    worker: Mapped[str | None] = mapped_column(Text)
    lease_until: Mapped[float | None] = mapped_column(Double)
    message: Mapped[str | None] = mapped_column(Text)
    added_at: Mapped[float] = mapped_column(Double)


class Result(Base):
    """What a run gave.

    Attributes:
        digest: sha256 of the quantized model.
        record: the run record as JSON; some of its numbers stand in columns of their own.
    """

    __tablename__ = "results"

    key: Mapped[str] = mapped_column(String(64), ForeignKey("runs.key"), primary_key=True)
    digest: Mapped[str] = mapped_column(String(64))
    record: Mapped[str] = mapped_column(Text)
    float_top1: Mapped[float | None] = mapped_column(Double)
    nearest_top1: Mapped[float | None] = mapped_column(Double)
    quantized_top1: Mapped[float | None] = mapped_column(Double)
    agreement: Mapped[float | None] = mapped_column(Double)
    seconds: Mapped[float | None] = mapped_column(Double)
    worker: Mapped[str] = mapped_column(Text)
    added_at: Mapped[float] = mapped_column(Double)
