"""The first tables: runs, and their results."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Make both tables."""
    op.create_table(
        "runs",
        sa.Column("key", sa.String(64), primary_key=True),
        sa.Column("label", sa.Text, nullable=False),
        sa.Column("network", sa.Text, nullable=False),
        sa.Column("widths", sa.Text, nullable=False),
        sa.Column("recipe", sa.Text, nullable=False),
        sa.Column("contrastive", sa.Text, nullable=False),
        sa.Column("seed", sa.Integer, nullable=False),
        sa.Column("cell", sa.String(64), nullable=False),
        sa.Column("pair", sa.String(64), nullable=False),
        sa.Column("configuration", sa.Text, nullable=False),
        sa.Column("code", sa.Text, nullable=False),
        sa.Column("model_digest", sa.String(64), nullable=False),
        sa.Column("data_digest", sa.String(64), nullable=False),
        sa.Column("state", sa.String(8), nullable=False, index=True),
        sa.Column("attempts", sa.Integer, nullable=False),
        sa.Column("claim", sa.String(32)),
        sa.Column("worker", sa.Text),
        sa.Column("lease_until", sa.Double),
        sa.Column("message", sa.Text),
        sa.Column("added_at", sa.Double, nullable=False),
        sa.CheckConstraint("state IN ('queued', 'running', 'done', 'failed')", name="a_known_state"),
    )
    op.create_table(
        "results",
        sa.Column("key", sa.String(64), sa.ForeignKey("runs.key"), primary_key=True),
        sa.Column("digest", sa.String(64), nullable=False),
        sa.Column("record", sa.Text, nullable=False),
        sa.Column("float_top1", sa.Double),
        sa.Column("nearest_top1", sa.Double),
        sa.Column("quantized_top1", sa.Double),
        sa.Column("agreement", sa.Double),
        sa.Column("seconds", sa.Double),
        sa.Column("worker", sa.Text, nullable=False),
        sa.Column("added_at", sa.Double, nullable=False),
    )


def downgrade() -> None:
    """Drop both tables, and what is in them."""
    op.drop_table("results")
    op.drop_table("runs")
