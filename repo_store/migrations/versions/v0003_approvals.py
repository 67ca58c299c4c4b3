"""Approvals: what runs have shown to people, and what was decided."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the table."""
    texts = ("stage", "shown", "asked_at", "decided_by", "decided_at", "because")
    op.create_table(
        "approvals",
        sa.Column("run_id", sa.Text(), sa.ForeignKey("runs.id"), primary_key=True, nullable=False),
        sa.Column("digest", sa.Text(), primary_key=True, nullable=False),
        *(sa.Column(name, sa.BigInteger(), nullable=False) for name in ("iteration", "approved")),
        *(sa.Column(name, sa.Text(), nullable=False) for name in texts),
    )
