"""Insights keep what they claim, apart from their words."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the column; what older insights claim was never checked, and nothing is made up."""
    op.add_column("insights", sa.Column("claims", sa.Text(), nullable=False, server_default="[]"))
