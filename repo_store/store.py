"""The policy repository: stores what each step of a run produced, and gives it back in domain types.

Every save is one transaction. Saving the same thing again is a no-op, because a resumed run repeats its last step;
saving something else in its place is an error, because a finished step never changes.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from itertools import groupby
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from sqlalchemy import select
from sqlalchemy.orm import Session

from repo_store import approvals, rows, search
from repo_store.codec import from_json, to_json
from repo_store.engine import Database, open_engine
from repo_store.records import PolicyMatch, RunRecord, RunStatus, SimilarRun
from repo_store.service_records import ServiceRecords
from repo_store.similar import distance
from repo_store.tables import (
    AntipatternRow,
    Base,
    CandidateRow,
    DerivedPolicyRow,
    InsightRow,
    MeaningRow,
    PlanRow,
    PolicyRow,
    ProfileRow,
    RunRow,
    SampleRow,
    VerdictRow,
    VerificationRow,
)
from schedagent.core.approval import ApprovalRequest, Decision
from schedagent.core.errors import NameTaken, PolicyError, RepositoryError, UsageError
from schedagent.core.policies.policy import CandidatePolicy, Plan, PolicyInfo
from schedagent.core.policies.proposal import DerivedPolicy
from schedagent.core.trials.lesson import Antipattern, Insight, Lesson, Meaning
from schedagent.core.trials.trial import Block, Hardware, Outcome, Verdict
from schedagent.core.trials.workload import WorkloadCommand, WorkloadProfile
from schedagent.core.verification import VerificationReport

_COMPARED_RUNS = 200
"""Profiles that are looked at for similar ones: reading one of a large build takes milliseconds."""


class PolicyRepository(Database):
    """One database of runs, measurements and what was learned from them. Threads and processes may share it.

    Args:
        url_or_path: path of an SQLite file, created if missing, or an SQLAlchemy URL.

    Raises:
        RepositoryError: it cannot be opened, is damaged, or was written by a newer schedagent. Every method may
            raise it too: the disk is full, another process holds the lock for too long, the file is damaged.
    """

    def __init__(self, url_or_path: str | Path) -> None:
        super().__init__(open_engine(url_or_path))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close all connections; nothing is lost without it."""
        self._engine.dispose()

    @property
    def service(self) -> ServiceRecords:
        """What the agent service keeps here."""
        return ServiceRecords(self._engine)

    # Runs

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
            workload=to_json(WorkloadCommand, workload),
            workload_key=workload.key,
            hardware=to_json(Hardware, hardware),
            hardware_key=hardware.key,
            settings=to_json(rows.Values, dict(settings or {})),
            seed=str(seed),
            started_at=_now(),
            finished_at="",
            status=RunStatus.RUNNING.value,
            report=None,
        )
        with self._writing() as session:
            _save_once(session, row, f"run {run_id}", except_for=("started_at", "finished_at", "status", "report"))
        return run_id

    def finish_run(self, run_id: str, status: RunStatus, report: Mapping[str, Any] | None = None) -> None:
        """Store how a run ended; one that is finished stays as it is.

        Raises:
            UsageError: there is no such run.
            RepositoryError: it was finished before, with another report.
        """
        text = None if report is None else to_json(rows.Values, dict(report))
        with self._writing() as session:
            row = _run_row(session, run_id)
            if row.status == RunStatus.FINISHED:
                if (status, text) != (row.status, row.report):
                    raise RepositoryError(f"run {run_id} is finished already, with another report")
                return
            row.status, row.report = status.value, text
            row.finished_at = "" if status is RunStatus.RUNNING else _now()

    def resume_run(self, run_id: str) -> None:
        """Set an interrupted, failed or killed run to running again.

        Raises:
            UsageError: there is no such run, or it is finished.
        """
        with self._writing() as session:
            row = _run_row(session, run_id)
            if row.status == RunStatus.FINISHED:
                raise UsageError(f"run {run_id} is finished", f"see what it found: schedagent runs show {run_id}")
            row.status, row.finished_at = RunStatus.RUNNING.value, ""

    def run(self, run_id: str) -> RunRecord:
        """Return a run.

        Raises:
            UsageError: there is no such run.
        """
        with self._reading() as session:
            return rows.run_record(_run_row(session, run_id))

    def list_runs(self, limit: int = 50) -> list[RunRecord]:
        """Return the latest runs, newest first."""
        newest_first = select(RunRow).order_by(RunRow.started_at.desc(), RunRow.id.desc()).limit(limit)
        with self._reading() as session:
            return [rows.run_record(row) for row in session.scalars(newest_first)]

    # What the steps of a run produced

    def save_profile(self, run_id: str, profile: WorkloadProfile) -> None:
        """Store what observation has shown."""
        row = ProfileRow(run_id=run_id, profile=to_json(WorkloadProfile, profile))
        with self._writing() as session:
            _save_once(session, row, f"the profile of run {run_id}")

    def profile(self, run_id: str) -> WorkloadProfile | None:
        """Return what observation has shown; None if it was not stored yet."""
        with self._reading() as session:
            row = session.get(ProfileRow, run_id)
            return None if row is None else from_json(WorkloadProfile, row.profile)

    def save_meaning(self, run_id: str, meaning: Meaning) -> None:
        """Store what was said of the profile in words."""
        row = MeaningRow(run_id=run_id, meaning=meaning.meaning, goal=meaning.goal)
        with self._writing() as session:
            _save_once(session, row, f"the meaning of the profile of run {run_id}")

    def meaning(self, run_id: str) -> Meaning | None:
        """Return what was said of the profile in words; None if nothing was."""
        with self._reading() as session:
            row = session.get(MeaningRow, run_id)
            return None if row is None else Meaning(row.meaning, row.goal)

    def save_plan(self, run_id: str, iteration: int, plan: Plan) -> None:
        """Store the candidates of one iteration, and why they were chosen."""
        new = rows.candidate_rows(run_id, iteration, plan)
        head = PlanRow(run_id=run_id, iteration=iteration, reason=plan.reason, learned=plan.learned)
        what = f"the plan of run {run_id}, iteration {iteration}"
        with self._writing() as session:
            if _save_once(session, head, what):
                session.add_all(new)
            else:
                _require_same(_planned_rows(session, run_id, iteration), new, what)

    def plan(self, run_id: str, iteration: int) -> Plan | None:
        """Return the plan of one iteration; None if it was not stored yet."""
        with self._reading() as session:
            head = session.get(PlanRow, (run_id, iteration))
            if head is None:
                return None
            candidates = tuple(rows.candidate(row) for row in _planned_rows(session, run_id, iteration))
            return Plan(candidates=candidates, reason=head.reason, learned=head.learned)

    def save_repair(self, run_id: str, iteration: int, failed_key: str, candidate: CandidatePolicy) -> None:
        """Store a candidate that repairs another one of the same iteration, which may be a repair itself.

        Raises:
            UsageError: that iteration has no candidate `failed_key`.
            PolicyError: the repair is a candidate of the iteration already, so it repairs nothing.
        """
        with self._writing() as session:
            stored = {row.key: row for row in _candidate_rows(session, run_id, iteration)}
            if failed_key not in stored:
                raise UsageError(f"run {run_id}, iteration {iteration} has no candidate {failed_key!r}")
            there = stored.get(candidate.key)
            if there is None:
                session.add(rows.candidate_row(run_id, iteration, len(stored), candidate, failed_key))
            elif there.repairs != failed_key:
                raise PolicyError(
                    f"{candidate.label} is a candidate of this iteration already", "change it, or give up"
                )

    def candidates(self, run_id: str, iteration: int) -> list[CandidatePolicy]:
        """Return all candidates of one iteration: the plan's, then the repairs, in the order they were stored."""
        with self._reading() as session:
            return [rows.candidate(row) for row in _candidate_rows(session, run_id, iteration)]

    def repaired(self, run_id: str, iteration: int) -> dict[str, str]:
        """Return, by the key of each repair of one iteration, the key of the candidate that it repairs."""
        with self._reading() as session:
            return {row.key: row.repairs for row in _candidate_rows(session, run_id, iteration) if row.repairs}

    def iterations(self, run_id: str) -> list[int]:
        """Return the iterations that have a plan, in order."""
        query = select(PlanRow.iteration).where(PlanRow.run_id == run_id).order_by(PlanRow.iteration)
        with self._reading() as session:
            return list(session.scalars(query))

    def save_verification(self, run_id: str, report: VerificationReport) -> None:
        """Store what the verifier said of a candidate."""
        with self._writing() as session:
            what = f"the verification of {report.candidate_key} in run {run_id}"
            _save_once(session, rows.verification_row(run_id, report), what)

    def verification(self, run_id: str, candidate_key: str) -> VerificationReport | None:
        """Return what the verifier said of a candidate; None if it was not stored yet."""
        with self._reading() as session:
            row = session.get(VerificationRow, (run_id, candidate_key))
            return None if row is None else from_json(VerificationReport, row.report)

    def add_block(self, run_id: str, iteration: int, block: Block, *, argv: Sequence[str] = ()) -> None:
        """Store one block of samples, all or none of them; when this returns, they survive a crash.

        Args:
            argv: the command that the lab ran for each sample.
        """
        new = rows.sample_rows(run_id, iteration, block, argv)
        what = f"block {block.number} of run {run_id}, iteration {iteration}"
        with self._writing() as session:
            stored = _sample_rows(session, run_id, iteration, block.number)
            if stored:
                _require_same(stored, new, what)
            else:
                session.add_all(new)

    def blocks(self, run_id: str, iteration: int) -> list[Block]:
        """Return the blocks of one iteration, in order, the warm-up included."""
        with self._reading() as session:
            stored = _sample_rows(session, run_id, iteration)
            return [
                Block(number, tuple(rows.sample(row) for row in group))
                for number, group in groupby(stored, key=lambda row: row.block)
            ]

    def save_verdict(self, run_id: str, iteration: int, candidate_key: str, verdict: Verdict) -> None:
        """Store the comparison of a planned candidate with the default scheduler."""
        row = rows.verdict_row(run_id, iteration, candidate_key, verdict, _now())
        what = f"the verdict on {candidate_key} in run {run_id}, iteration {iteration}"
        with self._writing() as session:
            if _save_once(session, row, what, except_for=("at",)) and verdict.outcome is Outcome.BETTER:
                search.rebuild_index(session)

    def verdicts(self, run_id: str, iteration: int) -> dict[str, Verdict]:
        """Return the verdicts of one iteration by candidate key, in the order of the plan."""
        query = (
            select(VerdictRow)
            .join(CandidateRow, _same_candidate())
            .where(VerdictRow.run_id == run_id, VerdictRow.iteration == iteration)
            .order_by(CandidateRow.position)
        )
        with self._reading() as session:
            return {row.candidate_key: rows.verdict(row) for row in session.scalars(query)}

    # What a person has to approve

    def ask_approval(self, run_id: str, request: ApprovalRequest) -> None:
        """Store what a run shows and waits for, and that it waits."""
        with self._writing() as session:
            approvals.ask(session, run_id, request, _now())
            _run_row(session, run_id).status = RunStatus.WAITING.value

    def decide_approval(self, run_id: str, digest: str, decision: Decision) -> None:
        """Store what was decided on what has this digest.

        Raises:
            UsageError: it was decided before, or does not wait.
        """
        with self._writing() as session:
            approvals.decide(session, run_id, digest, decision)

    def approvals(self, run_id: str) -> Sequence[tuple[ApprovalRequest, Decision | None]]:
        """Return all that a run has asked for, oldest first, with what was decided; None for what still waits."""
        with self._reading() as session:
            return approvals.every(session, run_id)

    # What was learned

    def lessons(self, workload_key: str, hardware_key: str) -> list[Lesson]:
        """Return all verdicts of all runs on this workload and hardware, newest first."""
        here = (RunRow.workload_key == workload_key) & (RunRow.hardware_key == hardware_key)
        with self._reading() as session:
            return [rows.lesson(*found) for found in session.execute(_verdicts_where(here))]

    def results_of(self, policy: str, limit: int = 20) -> list[Lesson]:
        """Return the latest verdicts on a policy, whatever the workload and hardware, newest first."""
        query = _verdicts_where(CandidateRow.policy == policy).limit(limit)
        with self._reading() as session:
            return [rows.lesson(*found) for found in session.execute(query)]

    def add_antipattern(self, antipattern: Antipattern) -> None:
        """Store a failure; if this candidate failed here at the same gate before, the first reason is kept."""
        row = rows.antipattern_row(antipattern)
        with self._writing() as session:
            if session.get(AntipatternRow, rows.identity(row)) is None:
                session.add(row)

    def antipatterns(self, workload_key: str, hardware_key: str) -> list[Antipattern]:
        """Return the failures on this hardware, for this workload or whatever the workload, newest first."""
        query = (
            select(AntipatternRow)
            .where(AntipatternRow.hardware_key == hardware_key, AntipatternRow.workload_key.in_([workload_key, ""]))
            .order_by(AntipatternRow.at.desc(), AntipatternRow.candidate_key, AntipatternRow.gate)
        )
        with self._reading() as session:
            return [rows.antipattern(row) for row in session.scalars(query)]

    def add_insight(self, insight: Insight) -> None:
        """Store what a run concluded from trials; the same words of the same run are stored once.

        Raises:
            UsageError: there is no such run, no evidence, or a key that no trial has a verdict on.
        """
        row = rows.insight_row(insight)
        with self._writing() as session:
            _run_row(session, insight.run_id)
            judged = select(VerdictRow.candidate_key).where(VerdictRow.candidate_key.in_(insight.evidence))
            unknown = sorted(set(insight.evidence) - set(session.scalars(judged)))
            if unknown or not insight.evidence:
                what = f"candidates that nobody measured: {', '.join(unknown)[:200]}" if unknown else "no trial at all"
                raise UsageError(f"the insight rests on {what}", "name keys of candidates that have a verdict")
            _save_once(session, row, "this insight", except_for=("created_at",))

    def insights(self, workload_key: str, hardware_key: str) -> list[Insight]:
        """Return what runs of this workload on this hardware concluded, newest first."""
        query = (
            select(InsightRow)
            .join(RunRow, RunRow.id == InsightRow.run_id)
            .where(RunRow.workload_key == workload_key, RunRow.hardware_key == hardware_key)
            .order_by(InsightRow.created_at.desc(), InsightRow.text)
        )
        with self._reading() as session:
            return [rows.insight(row) for row in session.scalars(query)]

    def similar_runs(
        self, profile: WorkloadProfile, hardware_key: str, limit: int = 3, *, but_not: str = ""
    ) -> list[SimilarRun]:
        """Return runs of other workloads on this hardware whose measured profiles are nearest, with their verdicts.

        Of each workload, the latest run that reached a verdict counts.

        Args:
            but_not: key of the workload whose own runs are left out (its results are `lessons`).
        """
        query = (
            select(RunRow, ProfileRow)
            .join(ProfileRow, ProfileRow.run_id == RunRow.id)
            .where(RunRow.hardware_key == hardware_key, RunRow.workload_key != but_not)
            .where(RunRow.id.in_(select(VerdictRow.run_id)))
            .order_by(RunRow.started_at.desc(), RunRow.id.desc())
            .limit(_COMPARED_RUNS)
        )
        with self._reading() as session:
            latest: dict[str, tuple[RunRow, WorkloadProfile]] = {}
            for run, stored in session.execute(query):
                if run.workload_key not in latest:
                    latest[run.workload_key] = run, from_json(WorkloadProfile, stored.profile)
            near = sorted(latest.values(), key=lambda found: distance(profile, found[1]))[:limit]
            return [_similar(session, run, found, distance(profile, found)) for run, found in near]

    # Policies that were made

    def keep_policy(self, made: DerivedPolicy) -> DerivedPolicy:
        """Store a policy and return what is stored: the same content under this name may be there from another run.

        Raises:
            NameTaken: a policy of other content has this name; what was stored once is never changed.
        """
        row = rows.derived_policy_row(made)
        with self._writing() as session:
            there = session.get(DerivedPolicyRow, made.name)
            if there is None:
                session.add(row)
                return made
            stored = rows.derived_policy(there)
        if stored.digest != made.digest:
            raise NameTaken(f"another policy is called {made.name}", "give it another name")
        return stored

    def derived_policies(self) -> list[DerivedPolicy]:
        """Return every policy that was ever made, by name."""
        with self._reading() as session:
            return [
                rows.derived_policy(row)
                for row in session.scalars(select(DerivedPolicyRow).order_by(DerivedPolicyRow.name))
            ]

    def policies_of(self, run_id: str) -> set[str]:
        """Return the names of the policies that a run has candidates of, or made."""
        planned = select(CandidateRow.policy).where(CandidateRow.run_id == run_id)
        made = select(DerivedPolicyRow.name).where(DerivedPolicyRow.run_id == run_id)
        with self._reading() as session:
            return {*session.scalars(planned), *session.scalars(made)}

    def winners(self) -> set[str]:
        """Return the names of the policies that were better than the default in some trial."""
        query = (
            select(CandidateRow.policy)
            .join(VerdictRow, _same_candidate())
            .where(VerdictRow.outcome == Outcome.BETTER.value)
            .distinct()
        )
        with self._reading() as session:
            return set(session.scalars(query))

    # The library, for searching

    def sync_policies(self, policies: Iterable[PolicyInfo]) -> None:
        """Make the mirror of the policy library equal to `policies`."""
        wanted = {policy.name: rows.policy_row(policy) for policy in policies}
        with self._writing() as session:
            stored = {row.name: row for row in session.scalars(select(PolicyRow))}
            if _contents(stored.values()) == _contents(wanted.values()):
                return
            for name in stored.keys() - wanted.keys():
                session.delete(stored[name])
            for row in wanted.values():
                session.merge(row)
            search.rebuild_index(session)

    def search_policies(self, text: str, limit: int = 10) -> list[PolicyMatch]:
        """Return the policies whose description, or the workloads they were better on, match `text`, best first."""
        with self._reading() as session:
            return search.search(session, text, limit)


def new_run_id() -> str:
    """Return an id for a new run; ids sort by time."""
    return f"{datetime.now(UTC):%Y%m%d-%H%M%S}-{secrets.token_hex(3)}"


def _save_once(session: Session, row: Base, what: str, *, except_for: Sequence[str] = ()) -> bool:
    """Store `row` and return True, or return False if an equal one is there (but for the columns `except_for`).

    Raises:
        RepositoryError: another one is there.
    """
    stored = session.get(type(row), rows.identity(row))
    if stored is None:
        session.add(row)
        session.flush()
        return True
    before, now = rows.columns(stored), rows.columns(row)
    if any(before[name] != now[name] for name in now if name not in except_for):
        raise _changed(what)
    return False


def _require_same(stored: Iterable[Base], new: Iterable[Base], what: str) -> None:
    if _contents(stored) != _contents(new):
        raise _changed(what)


def _contents(stored: Iterable[Base]) -> list[dict[str, Any]]:
    return sorted((rows.columns(row) for row in stored), key=str)


def _changed(what: str) -> RepositoryError:
    return RepositoryError(f"{what} is stored already, with other content", "a finished step is never overwritten")


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def _verdicts_where(condition: Any) -> Any:
    """Select run, candidate and verdict of every verdict that fits, newest first."""
    return (
        select(RunRow, CandidateRow, VerdictRow)
        .join(CandidateRow, CandidateRow.run_id == RunRow.id)
        .join(VerdictRow, _same_candidate())
        .where(condition)
        .order_by(VerdictRow.at.desc(), RunRow.id.desc(), VerdictRow.iteration.desc(), CandidateRow.position)
    )


def _same_candidate() -> Any:
    return (
        (CandidateRow.run_id == VerdictRow.run_id)
        & (CandidateRow.iteration == VerdictRow.iteration)
        & (CandidateRow.key == VerdictRow.candidate_key)
    )


def _run_row(session: Session, run_id: str) -> RunRow:
    row = session.get(RunRow, run_id)
    if row is None:
        raise UsageError(f"there is no run {run_id!r}", "see which there are: schedagent runs list")
    return row


def _candidate_rows(session: Session, run_id: str, iteration: int) -> list[CandidateRow]:
    query = select(CandidateRow).where(CandidateRow.run_id == run_id, CandidateRow.iteration == iteration)
    return list(session.scalars(query.order_by(CandidateRow.position)))


def _planned_rows(session: Session, run_id: str, iteration: int) -> list[CandidateRow]:
    return [row for row in _candidate_rows(session, run_id, iteration) if not row.repairs]


def _similar(session: Session, run: RunRow, profile: WorkloadProfile, apart: float) -> SimilarRun:
    query = (
        select(CandidateRow, VerdictRow)
        .join(VerdictRow, _same_candidate())
        .where(VerdictRow.run_id == run.id)
        .order_by(VerdictRow.iteration, CandidateRow.position)
    )
    lessons = tuple(rows.lesson(run, candidate, verdict) for candidate, verdict in session.execute(query))
    return SimilarRun(run.id, from_json(WorkloadCommand, run.workload), profile.kind, apart, lessons)


def _sample_rows(session: Session, run_id: str, iteration: int, block: int | None = None) -> list[SampleRow]:
    query = select(SampleRow).where(SampleRow.run_id == run_id, SampleRow.iteration == iteration)
    if block is not None:
        query = query.where(SampleRow.block == block)
    return list(session.scalars(query.order_by(SampleRow.block, SampleRow.position)))
