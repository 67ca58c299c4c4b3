"""Approvals in the repository: one row for each thing that was ever shown, under its digest; decided at most once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import delete, select
from sqlalchemy.orm import Session

from repo_store.codec import from_json, to_json
from repo_store.tables import ApprovalRow
from schedagent.core.approval import ApprovalRequest, ApprovalStage, Decision
from schedagent.core.errors import UsageError

Values = dict[str, Any]


def ask(session: Session, run_id: str, request: ApprovalRequest, at: str) -> None:
    """Store what a run waits for, in the place of what it waited for before."""
    if session.get(ApprovalRow, (run_id, request.digest)) is not None:
        return
    undecided = (ApprovalRow.run_id == run_id, ApprovalRow.decided_at == "")
    session.execute(delete(ApprovalRow).where(*undecided))
    session.add(
        ApprovalRow(
            run_id=run_id,
            digest=request.digest,
            stage=request.stage.value,
            iteration=request.iteration,
            shown=to_json(Values, dict(request.shown)),
            asked_at=at,
            approved=0,
            decided_by="",
            decided_at="",
            because="",
        )
    )


def decide(session: Session, run_id: str, digest: str, decision: Decision) -> None:
    """Store a decision on what waits for one.

    Raises:
        UsageError: this was decided before, or does not wait.
    """
    row = session.get(ApprovalRow, (run_id, digest))
    if row is None:
        raise UsageError(f"run {run_id} does not wait for the approval of {digest[:12]}")
    if row.decided_at:
        raise UsageError(f"this was {_decision(row).in_words} at {row.decided_at}", "a decision is made only once")
    row.approved, row.decided_by, row.decided_at = int(decision.approved), decision.by, decision.at
    row.because = decision.because


def every(session: Session, run_id: str) -> Sequence[tuple[ApprovalRequest, Decision | None]]:
    """Return all that a run has asked for, oldest first, with what was decided; None for what still waits."""
    query = select(ApprovalRow).where(ApprovalRow.run_id == run_id)
    rows = session.scalars(query.order_by(ApprovalRow.asked_at, ApprovalRow.decided_at == "", ApprovalRow.digest))
    return [(_request(row), _decision(row) if row.decided_at else None) for row in rows]


def _request(row: ApprovalRow) -> ApprovalRequest:
    return ApprovalRequest(ApprovalStage(row.stage), row.iteration, from_json(Values, row.shown))


def _decision(row: ApprovalRow) -> Decision:
    return Decision(bool(row.approved), row.decided_by, row.decided_at, row.because)
