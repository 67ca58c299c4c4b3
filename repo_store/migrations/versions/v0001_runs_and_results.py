"""The first schema: runs, what each of their steps stored, failures, and the mirror of the policy library."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from repo_store.search import CREATE_INDEX

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Create all tables, and the full-text index where the database has FTS5."""
    _create_runs()
    _create_plans()
    _create_measurements()
    _create_knowledge()
    connection = op.get_bind()
    if (
        connection.dialect.name == "sqlite"
        and connection.execute(sa.text("SELECT sqlite_compileoption_used('ENABLE_FTS5')")).scalar()
    ):
        op.execute(CREATE_INDEX)


def _text(name: str, *, key: bool = False, nullable: bool = False) -> sa.Column[str]:
    return sa.Column(name, sa.Text(), primary_key=key, nullable=nullable)


def _integer(name: str, *, key: bool = False, nullable: bool = False) -> sa.Column[int]:
    return sa.Column(name, sa.BigInteger(), primary_key=key, nullable=nullable, autoincrement=False)


def _run_id() -> sa.Column[str]:
    return sa.Column("run_id", sa.Text(), sa.ForeignKey("runs.id"), primary_key=True, nullable=False)


def _create_runs() -> None:
    texts = ("workload", "workload_key", "hardware", "hardware_key", "settings", "seed", "started_at", "finished_at")
    op.create_table(
        "runs",
        _text("id", key=True),
        *(_text(name) for name in texts),
        _text("status"),
        _text("report", nullable=True),
    )
    op.create_index("runs_by_workload", "runs", ["workload_key", "hardware_key"])
    op.create_table("profiles", _run_id(), _text("profile"))


def _create_plans() -> None:
    op.create_table("plans", _run_id(), _integer("iteration", key=True), _text("reason"), _text("learned"))
    op.create_table(
        "candidates",
        _text("run_id", key=True),
        _integer("iteration", key=True),
        _text("key", key=True),
        _integer("position"),
        *(_text(name) for name in ("policy", "tunables", "history", "classes", "reason")),
        sa.ForeignKeyConstraint(["run_id", "iteration"], ["plans.run_id", "plans.iteration"]),
    )
    op.create_table(
        "verifications",
        _run_id(),
        _text("candidate_key", key=True),
        *(_text(name) for name in ("artifact_digest", "kernel_release", "report", "token_text")),
    )


def _create_measurements() -> None:
    op.create_table(
        "samples",
        _run_id(),
        _integer("iteration", key=True),
        _integer("block", key=True),
        _text("arm", key=True),
        _integer("position"),
        sa.Column("value", sa.Double(), nullable=True),
        _integer("wall_ns"),
        _integer("cpu_ns"),
        _integer("exit_status", nullable=True),
        _text("started_at"),
        _integer("calibration_ns"),
        *(_text(name) for name in ("output_tail", "policy_exit", "argv")),
    )
    op.create_table(
        "verdicts",
        _text("run_id", key=True),
        _integer("iteration", key=True),
        _text("candidate_key", key=True),
        _text("outcome"),
        *(sa.Column(name, sa.Double(), nullable=True) for name in ("ratio", "low", "high")),
        sa.Column("confidence", sa.Double(), nullable=False),
        _integer("pairs"),
        _integer("disturbed"),
        _text("reason"),
        _text("at"),
        sa.ForeignKeyConstraint(
            ["run_id", "iteration", "candidate_key"], ["candidates.run_id", "candidates.iteration", "candidates.key"]
        ),
    )


def _create_knowledge() -> None:
    op.create_table(
        "antipatterns",
        *(_text(name, key=True) for name in ("hardware_key", "workload_key", "candidate_key", "gate", "source_digest")),
        *(_text(name) for name in ("policy", "tunables", "reason", "at")),
    )
    op.create_table(
        "policies",
        _text("name", key=True),
        *(_text(name) for name in ("description", "targets", "algorithm", "limitations")),
    )
