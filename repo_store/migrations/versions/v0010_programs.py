"""Candidates that are programs with a loader of their own."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the column; no older candidate is such a program."""
    op.add_column("candidates", sa.Column("program", sa.Text(), nullable=True))
