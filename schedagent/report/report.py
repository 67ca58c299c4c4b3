"""The report of a run, as values: what every face of it (terminal, JSON) shows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from schedagent.core.approval import ApprovalRequest, ApprovalStage, Decision
from schedagent.core.policies.policy import CandidatePolicy
from schedagent.core.trials.lesson import Insight, Meaning
from schedagent.core.trials.trial import Hardware, Verdict
from schedagent.core.trials.workload import WorkloadCommand, WorkloadProfile
from schedagent.core.verification import GateResult
from schedagent.report.model_use import ModelUse

IN_PROCESS = "this process itself"
"""Who verified, if it was no service."""


@dataclass(frozen=True)
class CandidateReport:
    """What became of one candidate.

    Args:
        candidate: what was planned.
        gates: results of the verifier, in the order they ran; none if it was not verified.
        verdict: None if it was not judged.
        cpu_time_ratio: candidate / default in CPU time; nan if nothing was compared.
        repairs: key of the failed candidate that it replaces; empty if it replaces none.
    """

    candidate: CandidatePolicy
    gates: tuple[GateResult, ...]
    verdict: Verdict | None
    cpu_time_ratio: float
    repairs: str


@dataclass(frozen=True)
class IterationReport:
    """One plan and its trial.

    Args:
        reason, learned: of the plan (see core.policy.Plan).
        candidates: in the order of the plan, each followed by what repaired it.
        runs_measured: runs of the workload, those under the default scheduler and the warm-up included.
    """

    reason: str
    learned: str
    candidates: tuple[CandidateReport, ...]
    runs_measured: int


@dataclass(frozen=True)
class DecisionReport:
    """One decision of a person.

    Args:
        stage: before which step it was made.
        iteration: of the run, from 1.
        digest: of what was shown.
        decision: who decided what, when and why.
    """

    stage: ApprovalStage
    iteration: int
    digest: str
    decision: Decision


@dataclass(frozen=True)
class IssuedToken:
    """The token of the winner.

    Args:
        policy, key: the candidate it is for.
        token: its text.
        allows: what it allows, as `approval.approvals.allowed` describes it.
        approved_by: user who approved that; empty if nobody had to.
    """

    policy: str
    key: str
    token: str
    allows: Mapping[str, Any]
    approved_by: str


@dataclass(frozen=True)
class Report:
    """Everything a run found.

    Args:
        run: its id.
        started_at: ISO 8601 UTC time.
        workload, hardware: what was optimised, and where.
        profile, meaning: the workload in numbers and in words; None if it was not observed, or has no words.
        iterations: one for each plan.
        best: the candidate that is better than the default scheduler by most; None if none is.
        insights: what a model concluded from the trials.
        model: what the run used of models; None if it asked none.
        out_of_time: whether its time budget ended it.
        complete: whether it has ended; if not, the report shows what is known so far.
        verified_by: who verified the candidates, sorted.
        decisions: of people, oldest first.
        waiting: what the run waits for; None if it waits for nothing.
        deployment: the token that a complete run issues for its winner; None if it issues none.
    """

    run: str
    started_at: str
    workload: WorkloadCommand
    hardware: Hardware
    profile: WorkloadProfile | None
    meaning: Meaning | None
    iterations: tuple[IterationReport, ...]
    best: CandidateReport | None
    insights: tuple[Insight, ...]
    model: ModelUse | None
    out_of_time: bool
    complete: bool
    verified_by: tuple[str, ...]
    decisions: tuple[DecisionReport, ...]
    waiting: ApprovalRequest | None
    deployment: IssuedToken | None

    @property
    def outcome(self) -> str:
        """The result in a few words, for lists of runs."""
        return "better" if self.best else "keep the default scheduler"

    @property
    def candidates(self) -> Iterator[CandidateReport]:
        """The candidates of all iterations, in their order."""
        for iteration in self.iterations:
            yield from iteration.candidates
