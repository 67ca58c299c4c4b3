"""Policies that were made in a run, candidates that came of them or mended others, and what was said in words."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the tables; candidates that are there were configured, and planned."""
    texts = ("way", "parent", "source", "manifest", "run_id", "created_at")
    op.create_table("made_policies", _text("name", key=True), *map(_text, texts), _text("spec", nullable=True))
    for name, default in (("way", "configure"), ("expected", ""), ("refuted_by", ""), ("mends", "")):
        op.add_column("candidates", sa.Column(name, sa.Text(), nullable=False, server_default=default))
    op.create_table("meanings", _run_id(), _text("meaning"), _text("goal"))
    op.create_table("insights", _run_id(), _text("text", key=True), _text("evidence"), _text("created_at"))


def _text(name: str, *, key: bool = False, nullable: bool = False) -> sa.Column[str]:
    return sa.Column(name, sa.Text(), primary_key=key, nullable=nullable)


def _run_id() -> sa.Column[str]:
    return sa.Column("run_id", sa.Text(), sa.ForeignKey("runs.id"), primary_key=True, nullable=False)
