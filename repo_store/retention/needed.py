"""What in the repository rests on runs, so that these must stay."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping

from sqlalchemy import select
from sqlalchemy.orm import Session

from repo_store.database.tables import (
    CandidateRow,
    DerivedPolicyRow,
    RecommendationRow,
    RequestRow,
    RunRow,
    VerdictRow,
)
from repo_store.records import RunStatus
from schedagent.core.recommendation import Progress, Standing
from schedagent.core.trials.trial import Outcome

ALIVE = (Progress.QUEUED, Progress.RUNNING, Progress.KEEPING)
"""How far a request is that has not ended."""


def what_rests_on(session: Session, ids: Collection[str]) -> Mapping[str, str]:
    """Return, by the id of each of these runs that something rests on, what that is, in words."""
    reasons: dict[str, str] = {}
    for run_id, reason in (*_waiting(session), *_requested(session), *_recommended(session), *_proofs(session, ids)):
        if run_id in ids:
            reasons.setdefault(run_id, reason)
    return reasons


def _waiting(session: Session) -> Iterator[tuple[str, str]]:
    for run_id in session.scalars(select(RunRow.id).where(RunRow.status == RunStatus.WAITING)):
        yield run_id, "it waits for an approval"


def _requested(session: Session) -> Iterator[tuple[str, str]]:
    query = (
        select(RequestRow.number, RequestRow.run_id, RecommendationRow.evidence)
        .join(RecommendationRow)
        .where(RequestRow.progress.in_(ALIVE))
    )
    for number, run_id, evidence in session.execute(query):
        for needed in {run_id, evidence.get("run", "")}:
            yield needed, f"request {number} of the agent service needs it"


def _recommended(session: Session) -> Iterator[tuple[str, str]]:
    pending = RecommendationRow.standing == Standing.OPEN, RecommendationRow.expires_at > time.time()
    for recommendation in session.scalars(select(RecommendationRow).where(*pending)):
        yield recommendation.evidence.get("run", ""), f"recommendation {recommendation.id} rests on it"


def _proofs(session: Session, ids: Collection[str]) -> Iterator[tuple[str, str]]:
    """A derived policy is planned with because it won somewhere: not all its wins may go."""
    query = (
        select(CandidateRow.policy, CandidateRow.run_id)
        .join(VerdictRow)
        .where(VerdictRow.outcome == Outcome.BETTER, CandidateRow.policy.in_(select(DerivedPolicyRow.name)))
        .distinct()
    )
    proofs: defaultdict[str, set[str]] = defaultdict(set)
    for policy, run_id in session.execute(query):
        proofs[policy].add(run_id)
    for policy, runs in proofs.items():
        if runs <= set(ids):
            yield max(runs), f"policy {policy} was proven better nowhere else"
