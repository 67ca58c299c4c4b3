"""Approvals in the repository: one row for each thing that was ever shown, under its digest; decided at most once."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import delete, select

from repo_store.database.engine import Database
from repo_store.database.tables import ApprovalRow
from repo_store.records import RunStatus
from repo_store.rows import from_row, to_row
from repo_store.runs import now, run_row
from schedagent.core.approval import ApprovalRequest, Decision
from schedagent.core.errors import UsageError


class ApprovalStore(Database):
    """What runs have shown to people, and what was decided."""

    def ask_approval(self, run_id: str, request: ApprovalRequest) -> None:
        """Store what a run shows and waits for, in the place of what it waited for before, and that it waits."""
        undecided = {"approved": 0, "decided_by": "", "decided_at": "", "because": ""}
        with self._transaction() as session:
            if session.get(ApprovalRow, (run_id, request.digest)) is None:
                waiting = (ApprovalRow.run_id == run_id, ApprovalRow.decided_at == "")
                session.execute(delete(ApprovalRow).where(*waiting))
                place = {"run_id": run_id, "digest": request.digest}
                session.add(to_row(ApprovalRow, request, **place, asked_at=now(), **undecided))
            run_row(session, run_id).status = RunStatus.WAITING

    def decide_approval(self, run_id: str, digest: str, decision: Decision) -> None:
        """Store what was decided on what has this digest.

        Raises:
            UsageError: it was decided before, or does not wait.
        """
        with self._transaction() as session:
            row = session.get(ApprovalRow, (run_id, digest))
            if row is None:
                raise UsageError(f"run {run_id} does not wait for the approval of {digest[:12]}")
            if before := _decision(row):
                raise UsageError(f"this was {before.in_words} at {before.at}", "a decision is made only once")
            row.approved, row.decided_by, row.decided_at = int(decision.approved), decision.by, decision.at
            row.because = decision.because

    def approvals(self, run_id: str) -> Sequence[tuple[ApprovalRequest, Decision | None]]:
        """Return all that a run has asked for, oldest first, with what was decided; None for what still waits."""
        query = select(ApprovalRow).where(ApprovalRow.run_id == run_id)
        oldest_first = query.order_by(ApprovalRow.asked_at, ApprovalRow.decided_at == "", ApprovalRow.digest)
        with self._session() as session:
            return [(from_row(ApprovalRequest, row), _decision(row)) for row in session.scalars(oldest_first)]


def _decision(row: ApprovalRow) -> Decision | None:
    if not row.decided_at:
        return None
    return Decision(bool(row.approved), row.decided_by, row.decided_at, row.because)
