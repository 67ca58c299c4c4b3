"""Tables and columns get the names that the program uses; copies of what a stored report contains are dropped."""

from __future__ import annotations

from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Rename, and drop the columns of verifications that nothing ever read."""
    op.rename_table("looks", "readings")
    op.rename_table("made_policies", "derived_policies")
    op.alter_column("derived_policies", "way", new_column_name="origin")
    op.alter_column("candidates", "way", new_column_name="origin")
    op.alter_column("candidates", "mends", new_column_name="repairs")
    for name in ("artifact_digest", "kernel_release", "token_text"):
        op.drop_column("verifications", name)
