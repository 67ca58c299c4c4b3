"""Builds the report of a run from the repository alone, so it is the same whenever and wherever it is asked for."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from agents.learning import best
from repo_store.records import RunRecord
from repo_store.store import PolicyRepository
from schedagent.approval.approvals import deployment, waiting
from schedagent.core.errors import UsageError, WorkloadFailed
from schedagent.core.trials.judge import cpu_time_ratio, pairs_of
from schedagent.core.trials.lesson import Insight
from schedagent.core.trials.race import own_blocks
from schedagent.core.trials.trial import Block, Verdict
from schedagent.report.model_use import ModelUse, model_use, stored_model_use
from schedagent.report.report import (
    IN_PROCESS,
    CandidateReport,
    DecisionReport,
    IssuedToken,
    IterationReport,
    Report,
)
from schedagent.report.values import knobs_of, split_of, values_of


def read_report(repository: PolicyRepository, run_id: str, transcript: Path) -> Report:
    """Return the report of a run, finished or not.

    A finished run has stored one as JSON. It may be one of an older version, so it is built again; only what stands
    nowhere else is read from the stored one.

    Args:
        transcript: where the run keeps what it asks models; there is none if it asks none.

    Raises:
        UsageError: there is no such run.
    """
    stored = repository.run(run_id).report
    used = model_use(transcript)
    if stored is None:
        return build_report(repository, run_id, model=used, complete=False)
    if used is None and stored.get("model"):
        used = stored_model_use(stored["model"])
    return build_report(repository, run_id, model=used, out_of_time=bool(stored.get("out_of_time")))


def build_report(
    repository: PolicyRepository,
    run_id: str,
    *,
    model: ModelUse | None = None,
    out_of_time: bool = False,
    complete: bool = True,
) -> Report:
    """Collect everything a run found.

    Args:
        model: what it used of models; None if it asked none.
        out_of_time: whether the run ended because its budget was used up.
        complete: whether the run has ended; if not, the report shows what is known so far.
    """
    run = repository.run(run_id)
    iterations = tuple(_iteration(repository, run, number) for number in repository.iterations(run_id))
    return Report(
        run=run_id,
        started_at=run.started_at,
        finished_at=run.finished_at,
        options=run.settings,
        workload=run.workload,
        hardware=run.hardware,
        costs=repository.costs(run_id),
        profile=repository.profile(run_id),
        meaning=repository.meaning(run_id),
        iterations=iterations,
        best=_best(run, iterations, _verdicts(repository, run_id)),
        insights=tuple(_insights(repository, run)),
        model=model,
        out_of_time=out_of_time,
        complete=complete,
        verified_by=_verifiers(repository, run_id, iterations),
        decisions=_decisions(repository, run_id),
        waiting=None if complete else waiting(repository, run_id),
        failure=run.failure,
        deployment=_issued_token(repository, run_id) if complete else None,
    )


def _iteration(repository: PolicyRepository, run: RunRecord, number: int) -> IterationReport:
    run_id = run.id
    plan = repository.plan(run_id, number)
    assert plan is not None, "iterations() lists stored plans"
    verdicts, blocks = repository.verdicts(run_id, number), repository.blocks(run_id, number)
    repaired = repository.repaired(run_id, number)
    candidates = []
    for candidate in repository.candidates(run_id, number):
        verification = repository.verification(run_id, candidate.key)
        judged = own_blocks(blocks, candidate.key) or blocks
        candidates.append(
            CandidateReport(
                candidate,
                verification.gates if verification else (),
                verdicts.get(candidate.key),
                cpu_time_ratio(judged, candidate.key),
                repaired.get(candidate.key, ""),
                _pairs(judged, candidate.key),
                values_of(judged, candidate.key, run.workload, run.hardware.cpus),
                None if run.workload.running else split_of(judged, candidate.key),
            )
        )
    return IterationReport(
        plan.reason,
        plan.learned,
        tuple(candidates),
        tuple(blocks),
        knobs_of(blocks, run.workload, run.hardware.cpus, repository.costs(run.id)),
    )


def _pairs(blocks: Sequence[Block], key: str) -> tuple[tuple[float, float], ...]:
    """Return the pairs of a candidate that are compared; none if the default scheduler's own runs failed."""
    try:
        return pairs_of(blocks, key).values
    except WorkloadFailed:
        return ()


def _verdicts(repository: PolicyRepository, run_id: str) -> dict[str, Verdict]:
    verdicts: dict[str, Verdict] = {}
    for number in repository.iterations(run_id):
        verdicts.update(repository.verdicts(run_id, number))
    return verdicts


def _best(
    run: RunRecord, iterations: tuple[IterationReport, ...], verdicts: dict[str, Verdict]
) -> CandidateReport | None:
    key = best(verdicts, lower_is_better=run.workload.goal.lower_is_better)
    every = (entry for iteration in iterations for entry in iteration.candidates)
    return next((entry for entry in every if entry.candidate.key == key), None)


def _insights(repository: PolicyRepository, run: RunRecord) -> list[Insight]:
    insights = repository.insights(run.workload.key, run.hardware.key)
    return [insight for insight in insights if insight.run_id == run.id]


def _verifiers(repository: PolicyRepository, run_id: str, iterations: tuple[IterationReport, ...]) -> tuple[str, ...]:
    keys = {entry.candidate.key for iteration in iterations for entry in iteration.candidates}
    verifications = [repository.verification(run_id, key) for key in keys]
    return tuple(sorted({report.verified_by or IN_PROCESS for report in verifications if report}))


def _decisions(repository: PolicyRepository, run_id: str) -> tuple[DecisionReport, ...]:
    return tuple(
        DecisionReport(request.stage, request.iteration + 1, request.digest, decision)
        for request, decision in repository.approvals(run_id)
        if decision
    )


def _issued_token(repository: PolicyRepository, run_id: str) -> IssuedToken | None:
    try:
        fields: dict[str, Any] | None = deployment(repository, run_id)
    except UsageError:  # a token of an older version cannot be read, and nothing can be deployed with it
        return None
    return IssuedToken(**fields) if fields else None
