"""Runs keep more than one value, what they used, and what carries over to hardware."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add columns and table; of older samples nothing but their one value is known, and nothing is made up."""
    op.add_column("samples", sa.Column("values", sa.Text(), nullable=False, server_default="{}"))
    op.add_column("samples", sa.Column("usage", sa.Text(), nullable=True))
    op.add_column("verdicts", sa.Column("guards", sa.Text(), nullable=False, server_default="[]"))
    op.add_column("verdicts", sa.Column("expected", sa.Text(), nullable=True))
    op.create_table(
        "costs",
        sa.Column("run_id", sa.Text(), sa.ForeignKey("runs.id"), primary_key=True),
        sa.Column("kappa", sa.Double(), nullable=False),
        sa.Column("lab_switch_ns", sa.Double(), nullable=False),
        sa.Column("host_switch_ns", sa.Double(), nullable=False),
    )
