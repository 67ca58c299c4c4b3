"""Why a run failed is kept with it."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the column; of runs that failed before, the reason is not known."""
    op.add_column("runs", sa.Column("failure", sa.Text(), nullable=True))
