"""The agent service: what it measured, what is usual, what it recommends, and what it was asked to carry out."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the tables."""
    delay: sa.Column[float] = sa.Column("delay_s", sa.Double(), nullable=True)
    op.create_table(
        "looks",
        _text("subject", key=True),
        _real("at", key=True),
        _real("elapsed_s"),
        delay,
        _real("pressure"),
        _text("commands"),
    )
    op.create_table(
        "baselines", _text("subject", key=True), _real("since"), _real("until"), _text("measures"), _text("mix")
    )
    texts = ("kind", "subject", "policy", "what", "why", "evidence", "workload", "cgroup", "standing", "note")
    op.create_table("recommendations", _text("id", key=True), *map(_text, texts), _real("since"), _real("expires_at"))
    op.create_table(
        "requests",
        sa.Column("number", sa.BigInteger(), primary_key=True, autoincrement=False, nullable=False),
        sa.Column("recommendation_id", sa.Text(), sa.ForeignKey("recommendations.id"), nullable=False),
        *map(_text, ("cgroup", "asked_by", "progress", "run_id", "note")),
        *map(_real, ("asked_at", "started_at", "ended_at")),
        sa.Column("deployment", sa.BigInteger(), nullable=False),
    )


def _text(name: str, *, key: bool = False) -> sa.Column[str]:
    return sa.Column(name, sa.Text(), primary_key=key, nullable=False)


def _real(name: str, *, key: bool = False) -> sa.Column[float]:
    return sa.Column(name, sa.Double(), primary_key=key, nullable=False)
