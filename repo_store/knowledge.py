"""What was learned from runs: lessons, antipatterns, insights, and runs of other workloads that are alike."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from sqlalchemy import Select, select
from sqlalchemy.orm import Session

from repo_store.database.engine import Database
from repo_store.database.tables import AntipatternRow, CandidateRow, InsightRow, ProfileRow, RunRow, VerdictRow
from repo_store.records import SimilarRun
from repo_store.rows import from_row, identity, save_once, to_row
from repo_store.runs import run_row
from repo_store.similar import distance
from schedagent.core.errors import UsageError
from schedagent.core.trials.lesson import Antipattern, Insight, Lesson
from schedagent.core.trials.workload import WorkloadProfile

_COMPARED_RUNS = 200
"""Runs whose profiles may be compared: reading one of a large build takes milliseconds."""


class KnowledgeStore(Database):
    """What the repository teaches those who plan."""

    def lessons(self, workload_key: str, hardware_key: str) -> list[Lesson]:
        """Return all verdicts of all runs on this workload and hardware, newest first."""
        here = (RunRow.workload_key == workload_key, RunRow.hardware_key == hardware_key)
        with self._session() as session:
            return _lessons(session, _newest_first(_verdicts().where(*here)))

    def results_of(self, policy: str, limit: int = 20) -> list[Lesson]:
        """Return the latest verdicts on a policy, whatever the workload and hardware, newest first."""
        with self._session() as session:
            return _lessons(session, _newest_first(_verdicts().where(CandidateRow.policy == policy)).limit(limit))

    def add_antipattern(self, antipattern: Antipattern) -> None:
        """Store a failure; if this candidate failed here at the same gate before, the first reason is kept."""
        row = to_row(AntipatternRow, antipattern)
        with self._transaction() as session:
            if session.get(AntipatternRow, identity(row)) is None:
                session.add(row)

    def antipatterns(self, workload_key: str, hardware_key: str) -> list[Antipattern]:
        """Return the failures on this hardware, for this workload or whatever the workload, newest first."""
        query = (
            select(AntipatternRow)
            .where(AntipatternRow.hardware_key == hardware_key, AntipatternRow.workload_key.in_([workload_key, ""]))
            .order_by(AntipatternRow.at.desc(), AntipatternRow.candidate_key, AntipatternRow.gate)
        )
        with self._session() as session:
            return [from_row(Antipattern, row) for row in session.scalars(query)]

    def add_insight(self, insight: Insight) -> None:
        """Store what a run concluded from trials; the same words of the same run are stored once.

        Raises:
            UsageError: there is no such run, no evidence, or a key that no trial has a verdict on.
        """
        row = to_row(InsightRow, insight)
        with self._transaction() as session:
            run_row(session, insight.run_id)
            judged = select(VerdictRow.candidate_key).where(VerdictRow.candidate_key.in_(insight.evidence))
            unknown = sorted(set(insight.evidence) - set(session.scalars(judged)))
            if unknown or not insight.evidence:
                what = f"candidates that nobody measured: {', '.join(unknown)[:200]}" if unknown else "no trial at all"
                raise UsageError(f"the insight rests on {what}", "name keys of candidates that have a verdict")
            save_once(session, row, "this insight", except_for=("created_at",))

    def insights(self, workload_key: str, hardware_key: str) -> list[Insight]:
        """Return what runs of this workload on this hardware concluded, newest first."""
        query = (
            select(InsightRow)
            .join(RunRow)
            .where(RunRow.workload_key == workload_key, RunRow.hardware_key == hardware_key)
            .order_by(InsightRow.created_at.desc(), InsightRow.text)
        )
        with self._session() as session:
            return [from_row(Insight, row) for row in session.scalars(query)]

    def similar_runs(
        self, profile: WorkloadProfile, hardware_key: str, limit: int = 3, *, but_not: str = ""
    ) -> list[SimilarRun]:
        """Return runs of other workloads on this hardware whose measured profiles are nearest, with their verdicts.

        Of each workload, the latest run that reached a verdict counts.

        Args:
            but_not: key of the workload whose own runs are left out (its results are `lessons`).
        """
        query = (
            select(RunRow.id, RunRow.workload_key)
            .join(ProfileRow)
            .where(RunRow.hardware_key == hardware_key, RunRow.workload_key != but_not)
            .where(RunRow.id.in_(select(VerdictRow.run_id)))
            .order_by(RunRow.started_at.desc(), RunRow.id.desc())
            .limit(_COMPARED_RUNS)
        )
        with self._session() as session:
            latest: dict[str, str] = {}
            for run_id, workload_key in session.execute(query):
                latest.setdefault(workload_key, run_id)
            stored = session.scalars(select(ProfileRow).where(ProfileRow.run_id.in_(latest.values())))
            profiles = {row.run_id: row.profile for row in stored}
            apart = {run_id: distance(profile, profiles[run_id]) for run_id in latest.values()}
            return [
                SimilarRun(
                    run_id,
                    run_row(session, run_id).workload,
                    profiles[run_id].kind,
                    apart[run_id],
                    tuple(_lessons(session, _planned_first(_verdicts().where(VerdictRow.run_id == run_id)))),
                )
                for run_id in sorted(apart, key=apart.__getitem__)[:limit]
            ]


_Verdicts = Select[*tuple[Any, ...]]


def _verdicts() -> _Verdicts:
    """Select what a lesson consists of."""
    return (
        select(
            *(RunRow.workload_key, RunRow.hardware_key),
            *(CandidateRow.policy, VerdictRow.candidate_key, CandidateRow.tunables),
            *(VerdictRow.outcome, VerdictRow.ratio, VerdictRow.low, VerdictRow.high, VerdictRow.pairs),
            *(VerdictRow.run_id, VerdictRow.at, VerdictRow.expected),
        )
        .select_from(VerdictRow)
        .join(CandidateRow)
        .join(RunRow, RunRow.id == VerdictRow.run_id)
    )


def all_lessons(session: Session) -> list[Lesson]:
    """Return all verdicts there are, newest first."""
    return _lessons(session, _newest_first(_verdicts()))


def _newest_first(query: _Verdicts) -> _Verdicts:
    return query.order_by(VerdictRow.at.desc(), RunRow.id.desc(), VerdictRow.iteration.desc(), CandidateRow.position)


def _planned_first(query: _Verdicts) -> _Verdicts:
    return query.order_by(VerdictRow.iteration, CandidateRow.position)


def _lessons(session: Session, query: _Verdicts) -> list[Lesson]:
    """Read lessons; of a trial in an emulated machine they keep what is expected on hardware."""
    return [_lesson(*tuple(row)) for row in session.execute(query)]


def _lesson(*columns: Any) -> Lesson:
    *fields, expected = columns
    lesson = Lesson(*fields)
    return replace(lesson, ratio=expected.ratio, low=expected.low, high=expected.high) if expected else lesson
