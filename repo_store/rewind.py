"""A copy of a repository as it was when a run had observed its workload and nothing more: what a replay begins with."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

from sqlalchemy import delete, or_
from sqlalchemy.orm import Session

from repo_store.database.engine import mapped_errors, open_engine
from repo_store.database.tables import (
    AntipatternRow,
    CandidateRow,
    DerivedPolicyRow,
    InsightRow,
    MeaningRow,
    PlanRow,
    SampleRow,
    VerdictRow,
    VerificationRow,
)
from repo_store.records import RunStatus
from repo_store.runs import run_row

_OF_THE_RUN = (VerdictRow, SampleRow, VerificationRow, CandidateRow, PlanRow, MeaningRow, InsightRow)
"""In an order that keeps every row's parent until it is gone."""


def rewind(source: Path, target: Path, run_id: str) -> None:
    """Copy a repository, and take out of the copy what the run found, and what others found after it had begun.

    Left are the run itself with its profile and the decisions on its approvals.

    Args:
        source: SQLite file of the repository; only read.
        target: file to make.

    Raises:
        UsageError: there is no such run.
        RepositoryError: the repository cannot be read, or the copy not be written.
    """
    with (
        mapped_errors(str(source)),
        closing(sqlite3.connect(source)) as whole,
        closing(sqlite3.connect(target)) as copy,
    ):
        whole.backup(copy)
    engine = open_engine(target)
    try:
        with mapped_errors(str(target)), Session(engine) as session, session.begin():
            _forget(session, run_id)
    finally:
        engine.dispose()


def _forget(session: Session, run_id: str) -> None:
    run = run_row(session, run_id)
    for table in _OF_THE_RUN:
        session.execute(delete(table).where(table.run_id == run_id))
    session.execute(delete(VerdictRow).where(VerdictRow.at >= run.started_at))
    session.execute(delete(AntipatternRow).where(AntipatternRow.at >= run.started_at))
    session.execute(delete(InsightRow).where(InsightRow.created_at >= run.started_at))
    later = or_(DerivedPolicyRow.run_id == run_id, DerivedPolicyRow.created_at >= run.started_at)
    session.execute(delete(DerivedPolicyRow).where(later))
    run.status, run.finished_at, run.report = RunStatus.RUNNING, "", None
