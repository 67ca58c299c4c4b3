"""What the steps of a run produced: the profile, plans, verifications, blocks of samples, verdicts.

Every save is one transaction. Saving the same thing again is a no-op, because a resumed run repeats its last step;
saving something else in its place is an error, because a finished step never changes.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

from sqlalchemy import Select, select
from sqlalchemy.orm import Session, undefer

from repo_store import search
from repo_store.database.engine import Database
from repo_store.database.tables import (
    CandidateRow,
    CostsRow,
    MeaningRow,
    PlanRow,
    ProfileRow,
    RunRow,
    SampleRow,
    VerdictRow,
    VerificationRow,
)
from repo_store.rows import from_row, require_same, save_once, to_row
from repo_store.runs import now
from schedagent.core.errors import PolicyError, UsageError
from schedagent.core.policies.policy import CandidatePolicy, Plan
from schedagent.core.trials.lesson import Meaning
from schedagent.core.trials.trial import Block, Outcome, Sample, Verdict
from schedagent.core.trials.usage import MachineCosts
from schedagent.core.trials.workload import WorkloadProfile
from schedagent.core.verification import VerificationReport


class ResultStore(Database):
    """The results of runs in the repository."""

    # Observation

    def save_profile(self, run_id: str, profile: WorkloadProfile) -> None:
        """Store what observation has shown."""
        with self._transaction() as session:
            save_once(session, ProfileRow(run_id=run_id, profile=profile), f"the profile of run {run_id}")

    def profile(self, run_id: str) -> WorkloadProfile | None:
        """Return what observation has shown; None if it was not stored yet."""
        with self._session() as session:
            row = session.get(ProfileRow, run_id)
            return None if row is None else row.profile

    def save_meaning(self, run_id: str, meaning: Meaning) -> None:
        """Store what a model said of the profile in words."""
        with self._transaction() as session:
            row = to_row(MeaningRow, meaning, run_id=run_id)
            save_once(session, row, f"the meaning of the profile of run {run_id}")

    def meaning(self, run_id: str) -> Meaning | None:
        """Return what a model said of the profile in words; None if nothing was stored."""
        with self._session() as session:
            row = session.get(MeaningRow, run_id)
            return None if row is None else from_row(Meaning, row)

    def save_costs(self, run_id: str, costs: MachineCosts) -> None:
        """Store what separates the lab's machine from the hardware beneath it."""
        with self._transaction() as session:
            save_once(session, to_row(CostsRow, costs, run_id=run_id), f"the machine costs of run {run_id}")

    def costs(self, run_id: str) -> MachineCosts | None:
        """Return what separates the lab's machine from the hardware; None if it was not measured."""
        with self._session() as session:
            row = session.get(CostsRow, run_id)
            return None if row is None else from_row(MachineCosts, row)

    def latest_costs(self) -> tuple[MachineCosts, str] | None:
        """Return the costs that were measured last, and when that run began (ISO 8601 UTC); None without any."""
        latest = select(CostsRow, RunRow.started_at).join(RunRow, RunRow.id == CostsRow.run_id)
        with self._session() as session:
            row = session.execute(latest.order_by(RunRow.started_at.desc()).limit(1)).first()
            return None if row is None else (from_row(MachineCosts, row[0]), row[1])

    # Plans

    def save_plan(self, run_id: str, iteration: int, plan: Plan) -> None:
        """Store the candidates of one iteration, and why they were chosen."""
        head = PlanRow(run_id=run_id, iteration=iteration, reason=plan.reason, learned=plan.learned)
        new = [
            _candidate_row(run_id, iteration, position, candidate) for position, candidate in enumerate(plan.candidates)
        ]
        what = f"the plan of run {run_id}, iteration {iteration}"
        with self._transaction() as session:
            if save_once(session, head, what):
                session.add_all(new)
            else:
                require_same(_planned_rows(session, run_id, iteration), new, what)

    def plan(self, run_id: str, iteration: int) -> Plan | None:
        """Return the plan of one iteration; None if it was not stored yet."""
        with self._session() as session:
            head = session.get(PlanRow, (run_id, iteration))
            if head is None:
                return None
            candidates = tuple(from_row(CandidatePolicy, row) for row in _planned_rows(session, run_id, iteration))
            return Plan(candidates=candidates, reason=head.reason, learned=head.learned)

    def save_repair(self, run_id: str, iteration: int, failed_key: str, candidate: CandidatePolicy) -> None:
        """Store a candidate that repairs another one of the same iteration, which may be a repair itself.

        Raises:
            UsageError: that iteration has no candidate `failed_key`.
            PolicyError: the repair is a candidate of the iteration already, so it repairs nothing.
        """
        with self._transaction() as session:
            repairs = _repairs(session, run_id, iteration)
            if failed_key not in repairs:
                raise UsageError(f"run {run_id}, iteration {iteration} has no candidate {failed_key!r}")
            if candidate.key not in repairs:
                session.add(_candidate_row(run_id, iteration, len(repairs), candidate, failed_key))
            elif repairs[candidate.key] != failed_key:
                raise PolicyError(
                    f"{candidate.label} is a candidate of this iteration already", "change it, or give up"
                )

    def candidates(self, run_id: str, iteration: int) -> list[CandidatePolicy]:
        """Return all candidates of one iteration: the plan's, then the repairs, in the order they were stored."""
        with self._session() as session:
            return [from_row(CandidatePolicy, row) for row in session.scalars(_candidates(run_id, iteration))]

    def repaired(self, run_id: str, iteration: int) -> dict[str, str]:
        """Return, by the key of each repair of one iteration, the key of the candidate that it repairs."""
        with self._session() as session:
            return {key: failed for key, failed in _repairs(session, run_id, iteration).items() if failed}

    def iterations(self, run_id: str) -> list[int]:
        """Return the iterations that have a plan, in order."""
        query = select(PlanRow.iteration).where(PlanRow.run_id == run_id).order_by(PlanRow.iteration)
        with self._session() as session:
            return list(session.scalars(query))

    # Verification

    def save_verification(self, run_id: str, report: VerificationReport) -> None:
        """Store the verifier's report on a candidate."""
        row = VerificationRow(run_id=run_id, candidate_key=report.candidate_key, report=report)
        with self._transaction() as session:
            save_once(session, row, f"the verification of {report.candidate_key} in run {run_id}")

    def verification(self, run_id: str, candidate_key: str) -> VerificationReport | None:
        """Return the verifier's report on a candidate; None if it was not stored yet."""
        with self._session() as session:
            row = session.get(VerificationRow, (run_id, candidate_key))
            return None if row is None else row.report

    # Trials

    def add_block(self, run_id: str, iteration: int, block: Block, *, argv: Sequence[str] = ()) -> None:
        """Store one block of samples, all or none of them; when this returns, they survive a crash.

        Args:
            argv: the command that the lab ran for each sample.
        """
        place = {"run_id": run_id, "iteration": iteration, "block": block.number}
        new = [
            to_row(SampleRow, sample, **place, position=position, argv=tuple(argv))
            for position, sample in enumerate(block.samples)
        ]
        what = f"block {block.number} of run {run_id}, iteration {iteration}"
        with self._transaction() as session:
            query = _samples(run_id, iteration).where(SampleRow.block == block.number)
            stored = session.scalars(query.options(undefer(SampleRow.argv))).all()
            if stored:
                require_same(stored, new, what)
            else:
                session.add_all(new)

    def blocks(self, run_id: str, iteration: int) -> list[Block]:
        """Return the blocks of one iteration, in order, the warm-up included."""
        with self._session() as session:
            stored = session.scalars(_samples(run_id, iteration))
            return [
                Block(number, tuple(from_row(Sample, row) for row in group))
                for number, group in groupby(stored, key=lambda row: row.block)
            ]

    def save_verdict(self, run_id: str, iteration: int, candidate_key: str, verdict: Verdict) -> None:
        """Store the comparison of a planned candidate with the default scheduler."""
        place = {"run_id": run_id, "iteration": iteration, "candidate_key": candidate_key}
        row = to_row(VerdictRow, verdict, **place, at=now())
        what = f"the verdict on {candidate_key} in run {run_id}, iteration {iteration}"
        with self._transaction() as session:
            if save_once(session, row, what, except_for=("at",)) and verdict.outcome is Outcome.BETTER:
                search.rebuild_index(session)

    def verdicts(self, run_id: str, iteration: int) -> dict[str, Verdict]:
        """Return the verdicts of one iteration by candidate key, in the order of the plan."""
        query = (
            select(VerdictRow)
            .join(CandidateRow)
            .where(VerdictRow.run_id == run_id, VerdictRow.iteration == iteration)
            .order_by(CandidateRow.position)
        )
        with self._session() as session:
            return {row.candidate_key: from_row(Verdict, row) for row in session.scalars(query)}


def _candidate_row(
    run_id: str, iteration: int, position: int, candidate: CandidatePolicy, repairs: str = ""
) -> CandidateRow:
    place = {"run_id": run_id, "iteration": iteration, "position": position}
    return to_row(CandidateRow, candidate, **place, key=candidate.key, repairs=repairs)


def _candidates(run_id: str, iteration: int) -> Select[CandidateRow]:
    query = select(CandidateRow).where(CandidateRow.run_id == run_id, CandidateRow.iteration == iteration)
    return query.order_by(CandidateRow.position)


def _planned_rows(session: Session, run_id: str, iteration: int) -> Sequence[CandidateRow]:
    return session.scalars(_candidates(run_id, iteration).where(CandidateRow.repairs == "")).all()


def _repairs(session: Session, run_id: str, iteration: int) -> dict[str, str]:
    """Return, by the key of each candidate, the key of the one that it repairs, empty for the plan's own."""
    query = _candidates(run_id, iteration).with_only_columns(CandidateRow.key, CandidateRow.repairs)
    return {row.key: row.repairs for row in session.execute(query)}


def _samples(run_id: str, iteration: int) -> Select[SampleRow]:
    query = select(SampleRow).where(SampleRow.run_id == run_id, SampleRow.iteration == iteration)
    return query.order_by(SampleRow.block, SampleRow.position)
