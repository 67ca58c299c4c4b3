"""What the agent service keeps: measured intervals, baselines, recommendations, and requests to carry them out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

from sqlalchemy import delete, func, select
from sqlalchemy.orm import Session

from repo_store.database.engine import Database
from repo_store.database.tables import BaselineRow, ReadingRow, RecommendationRow, RequestRow
from repo_store.rows import from_row, to_row
from schedagent.core.errors import UsageError
from schedagent.core.recommendation import (
    ApplyRequest,
    Baseline,
    Progress,
    Reading,
    Recommendation,
    RecommendationKind,
    Standing,
)
from schedagent.core.retention.limits import RETENTION

MAX_READINGS = RETENTION["readings"].count
"""Of one subject, whatever the retention: about 20 MB."""
MOST_RECOMMENDATIONS = 1000
_OLDEST_FIRST = (RequestRow.asked_at, RequestRow.number)
_ALIVE = (Progress.QUEUED, Progress.RUNNING, Progress.KEEPING)


class ServiceRecords(Database):
    """The part of the repository that the agent service writes. Every method may raise RepositoryError."""

    # What was measured

    def add_readings(self, readings: Iterable[Reading], *, keep_since: float) -> None:
        """Store intervals, and forget those that ended before `keep_since` (Unix time), or are too many."""
        with self._transaction() as session:
            for reading in readings:
                session.merge(to_row(ReadingRow, reading))
                session.flush()
                _forget_too_many(session, reading.subject)
            session.execute(delete(ReadingRow).where(ReadingRow.at < keep_since))

    def readings(
        self, subject: str, *, since: float = 0.0, limit: int = MAX_READINGS, busy: bool = False
    ) -> list[Reading]:
        """Return the latest intervals of a subject that ended after `since`, oldest first.

        Args:
            busy: only those in which one of its tasks ran.
        """
        query = select(ReadingRow).where(ReadingRow.subject == subject, ReadingRow.at > since)
        if busy:
            query = query.where(ReadingRow.delay_s.is_not(None))
        with self._session() as session:
            newest_first = session.scalars(query.order_by(ReadingRow.at.desc()).limit(limit)).all()
            return [from_row(Reading, row) for row in reversed(newest_first)]

    def first_reading_at(self) -> float | None:
        """Return when the oldest interval ended (Unix time); None if nothing was measured."""
        with self._session() as session:
            return session.scalar(select(func.min(ReadingRow.at)))

    def save_baseline(self, baseline: Baseline) -> None:
        """Store what is usual for a subject, in the place of what was."""
        with self._transaction() as session:
            session.merge(to_row(BaselineRow, baseline))

    def baseline(self, subject: str) -> Baseline | None:
        """Return what is usual for a subject; None if that is not known yet."""
        with self._session() as session:
            row = session.get(BaselineRow, subject)
            return None if row is None else from_row(Baseline, row)

    def baselines(self) -> list[Baseline]:
        """Return all baselines, by subject."""
        with self._session() as session:
            return [
                from_row(Baseline, row) for row in session.scalars(select(BaselineRow).order_by(BaselineRow.subject))
            ]

    def forget_baseline(self, subject: str) -> None:
        """Forget what was usual for a subject, and the intervals behind it: something has changed on purpose."""
        with self._transaction() as session:
            session.execute(delete(BaselineRow).where(BaselineRow.subject == subject))
            session.execute(delete(ReadingRow).where(ReadingRow.subject == subject))

    # What is recommended

    def recommend(self, recommendation: Recommendation) -> Recommendation:
        """Store a recommendation once, under its id, and return what is stored.

        The same one again has newer figures and lives longer. One that was withdrawn is open again, and so is
        a deployment that failed and has got a newer token since; what was applied, or failed otherwise, stays so.
        """
        with self._transaction() as session:
            row = session.get(RecommendationRow, recommendation.id)
            if row is None:
                session.add(to_row(RecommendationRow, recommendation))
                return recommendation
            stored = from_row(Recommendation, row)
            if stored.standing is Standing.APPLIED:
                return stored
            newer = recommendation.kind is RecommendationKind.DEPLOY and recommendation.expires_at > stored.expires_at
            again = stored.standing is not Standing.FAILED or newer
            standing, note = (Standing.OPEN, "") if again else (stored.standing, stored.note)
            merged = replace(recommendation, since=stored.since, standing=standing, note=note)
            session.merge(to_row(RecommendationRow, merged))
            return merged

    def set_standing(self, recommendation_id: str, standing: Standing, note: str = "") -> None:
        """Store how a recommendation stands, and what came of it."""
        with self._transaction() as session:
            _stand(session, recommendation_id, standing, note)

    def recommendation(self, recommendation_id: str) -> Recommendation:
        """Return a recommendation.

        Raises:
            UsageError: there is no such one.
        """
        with self._session() as session:
            row = session.get(RecommendationRow, recommendation_id)
            if row is None:
                raise UsageError(
                    f"there is no recommendation {recommendation_id!r}",
                    "see which there are: schedagent recommendations --all",
                )
            return from_row(Recommendation, row)

    def recommendations(self) -> list[Recommendation]:
        """Return all recommendations, newest first, at most a thousand."""
        newest = select(RecommendationRow).order_by(RecommendationRow.since.desc(), RecommendationRow.id)
        with self._session() as session:
            return [from_row(Recommendation, row) for row in session.scalars(newest.limit(MOST_RECOMMENDATIONS))]

    # What is to be carried out

    def ask(self, request: ApplyRequest) -> ApplyRequest:
        """Store a request and return it with its number.

        Raises:
            UsageError: the same recommendation was requested before, and that request has not ended.
        """
        with self._transaction() as session:
            same = RequestRow.recommendation_id == request.recommendation_id
            alive = session.scalars(select(RequestRow).where(same, RequestRow.progress.in_(_ALIVE))).first()
            if alive is not None:
                raise UsageError(
                    f"recommendation {request.recommendation_id} is being carried out already "
                    f"(request {alive.number}, {alive.progress})",
                    "wait for it",
                )
            last = session.scalar(select(func.max(RequestRow.number))) or 0
            numbered = replace(request, number=last + 1)
            session.add(to_row(RequestRow, numbered))
            return numbered

    def save_request(self, request: ApplyRequest, standing: Standing | None = None) -> None:
        """Store how far a request is and, if `standing` is given, what that means for its recommendation."""
        with self._transaction() as session:
            session.merge(to_row(RequestRow, request))
            if standing is not None:
                _stand(session, request.recommendation_id, standing, request.note)

    def request(self, number: int) -> ApplyRequest:
        """Return a request; raise UsageError if there is none of this number."""
        with self._session() as session:
            row = session.get(RequestRow, number)
            if row is None:
                raise UsageError(f"there is no request {number}")
            return from_row(ApplyRequest, row)

    def requests(self, *progress: Progress) -> list[ApplyRequest]:
        """Return the requests that are this far, oldest first; all of them if nothing is named."""
        query = select(RequestRow).order_by(*_OLDEST_FIRST)
        if progress:
            query = query.where(RequestRow.progress.in_(progress))
        with self._session() as session:
            return [from_row(ApplyRequest, row) for row in session.scalars(query)]

    def latest_requests(self) -> Mapping[str, ApplyRequest]:
        """Return the latest request for each recommendation that was ever asked for, by its id."""
        return {request.recommendation_id: request for request in self.requests()}

    def begun_by_service(self, kind: RecommendationKind, since: float) -> int:
        """Count the requests for recommendations of a kind that the service itself made after `since` (Unix time)."""
        query = (
            select(func.count())
            .select_from(RequestRow)
            .join(RecommendationRow)
            .where(RecommendationRow.kind == kind, RequestRow.asked_by == "", RequestRow.asked_at > since)
        )
        with self._session() as session:
            return session.scalar(query) or 0


def _forget_too_many(session: Session, subject: str) -> None:
    newest = select(ReadingRow.at).where(ReadingRow.subject == subject).order_by(ReadingRow.at.desc())
    oldest_kept = session.scalar(newest.offset(MAX_READINGS - 1).limit(1))
    if oldest_kept is not None:
        session.execute(delete(ReadingRow).where(ReadingRow.subject == subject, ReadingRow.at < oldest_kept))


def _stand(session: Session, recommendation_id: str, standing: Standing, note: str) -> None:
    row = session.get(RecommendationRow, recommendation_id)
    if row is not None:
        row.standing, row.note = standing, note
