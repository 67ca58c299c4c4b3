"""Runs in the repository: how each was begun, where it stands, and how it ended."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from repo_store.database.engine import Database
from repo_store.database.tables import ProfileRow, RunRow
from repo_store.records import RunFailure, RunRecord, RunStatus
from repo_store.rows import from_row, save_once
from schedagent.core.errors import RepositoryError, UsageError
from schedagent.core.trials.trial import Hardware
from schedagent.core.trials.workload import WorkloadCommand

_SET_LATER = ("started_at", "finished_at", "status", "report", "failure")


class RunStore(Database):
    """The runs of the repository."""

    def create_run(
        self,
        workload: WorkloadCommand,
        hardware: Hardware,
        *,
        settings: Mapping[str, Any] | None = None,
        seed: int = 0,
        run_id: str = "",
    ) -> str:
        """Store a new run as running and return its id.

        Args:
            workload, hardware: what is optimised, and where.
            settings: options of the run, JSON values.
            seed: of every random choice in it.
            run_id: id to use, so that a repeated step finds its run; empty for a new one.
        """
        run_id = run_id or new_run_id()
        row = RunRow(
            id=run_id,
            workload=workload,
            workload_key=workload.key,
            hardware=hardware,
            hardware_key=hardware.key,
            settings=settings or {},
            seed=seed,
            started_at=now(),
            finished_at="",
            status=RunStatus.RUNNING,
            report=None,
            failure=None,
        )
        with self._transaction() as session:
            save_once(session, row, f"run {run_id}", except_for=_SET_LATER)
        return run_id

    def settle_workload(self, run_id: str, workload: WorkloadCommand) -> None:
        """Store what observing a run has shown of how its work is compared; its key follows.

        Raises:
            UsageError: there is no such run.
            RepositoryError: it was observed before, so what it is compared by stands.
        """
        with self._transaction() as session:
            row = run_row(session, run_id)
            if row.workload == workload:
                return
            if session.get(ProfileRow, run_id) is not None:
                raise RepositoryError(f"run {run_id} was observed already, and compares {row.workload.metric!r}")
            row.workload, row.workload_key = workload, workload.key

    def finish_run(
        self,
        run_id: str,
        status: RunStatus,
        report: Mapping[str, Any] | None = None,
        failure: RunFailure | None = None,
    ) -> None:
        """Store how a run ended, and why if it failed; one that is finished stays as it is.

        Raises:
            UsageError: there is no such run.
            RepositoryError: it was finished before, with another report.
        """
        with self._transaction() as session:
            row = run_row(session, run_id)
            if row.status is RunStatus.FINISHED:
                if status is not row.status or not RunRow.report.type.compare_values(report, row.report):
                    raise RepositoryError(f"run {run_id} is finished already, with another report")
                return
            row.status, row.report, row.failure = status, report, failure
            row.finished_at = "" if status is RunStatus.RUNNING else now()

    def resume_run(self, run_id: str) -> None:
        """Set an interrupted, failed or killed run to running again.

        Raises:
            UsageError: there is no such run, or it is finished.
        """
        with self._transaction() as session:
            row = run_row(session, run_id)
            if row.status is RunStatus.FINISHED:
                raise UsageError(f"run {run_id} is finished", f"see its report: schedagent runs show {run_id}")
            row.status, row.finished_at, row.failure = RunStatus.RUNNING, "", None

    def run(self, run_id: str) -> RunRecord:
        """Return a run.

        Raises:
            UsageError: there is no such run.
        """
        with self._session() as session:
            return from_row(RunRecord, run_row(session, run_id))

    def list_runs(self, limit: int = 50, status: RunStatus | None = None) -> list[RunRecord]:
        """Return the latest runs, newest first.

        Args:
            limit: most of them.
            status: only those that stand so; None for all.
        """
        newest_first = select(RunRow).order_by(RunRow.started_at.desc(), RunRow.id.desc()).limit(limit)
        if status is not None:
            newest_first = newest_first.where(RunRow.status == status)
        with self._session() as session:
            return [from_row(RunRecord, row) for row in session.scalars(newest_first)]

    def statuses(self) -> dict[str, RunStatus]:
        """Return where each run there is stands, by its id."""
        with self._session() as session:
            return {row.id: row.status for row in session.execute(select(RunRow.id, RunRow.status))}


def new_run_id() -> str:
    """Return an id for a new run; ids sort by time."""
    return f"{datetime.now(UTC):%Y%m%d-%H%M%S}-{secrets.token_hex(3)}"


def now() -> str:
    """Return the time as the repository stores it: ISO 8601, UTC."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def run_row(session: Session, run_id: str) -> RunRow:
    """Return the row of a run; raise UsageError if there is none."""
    row = session.get(RunRow, run_id)
    if row is None:
        raise UsageError(f"there is no run {run_id!r}", "see which there are: schedagent runs list")
    return row
