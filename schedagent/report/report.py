"""The report of a run, as values: what every face of it (terminal, JSON, HTML, Markdown) shows."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from itertools import pairwise
from statistics import median
from typing import Any

from repo_store.records import RunFailure
from schedagent.core.approval import ApprovalRequest, ApprovalStage, Decision
from schedagent.core.policies.policy import CandidatePolicy
from schedagent.core.trials.lesson import Insight, Meaning
from schedagent.core.trials.trial import Block, Hardware, Outcome, Verdict
from schedagent.core.trials.usage import MachineCosts
from schedagent.core.trials.workload import WorkloadCommand, WorkloadProfile
from schedagent.core.verification import GateResult
from schedagent.report.model_use import ModelUse
from schedagent.report.values import KnobReport, Split, ValueReport

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
        pairs: (default's value, candidate's value) of each block that is compared, in their order.
        values: of both arms, what is compared first; none if nothing was measured.
        split: what the difference in wall time consists of; None if nothing was measured.
            Like the pairs, both are of the blocks that the verdict rests on: its own, if it led a race.
    """

    candidate: CandidatePolicy
    gates: tuple[GateResult, ...]
    verdict: Verdict | None
    cpu_time_ratio: float
    repairs: str
    pairs: tuple[tuple[float, float], ...]
    values: tuple[ValueReport, ...] = ()
    split: Split | None = None


@dataclass(frozen=True)
class IterationReport:
    """One plan and its trial.

    Args:
        reason, learned: of the plan (see core.policy.Plan).
        candidates: in the order of the plan, each followed by what repaired it.
        blocks: of its trial, in their order, the warm-up included.
        knobs: what settings that every kernel has gave beside them; no claims.
    """

    reason: str
    learned: str
    candidates: tuple[CandidateReport, ...]
    blocks: tuple[Block, ...]
    knobs: tuple[KnobReport, ...] = ()

    @property
    def runs_measured(self) -> int:
        """Runs of the workload, those under the default scheduler and the warm-up included."""
        return sum(len(block.samples) for block in self.blocks)

    @property
    def undecided(self) -> tuple[Verdict, ...]:
        """The verdicts that are inconclusive."""
        verdicts = (entry.verdict for entry in self.candidates)
        return tuple(verdict for verdict in verdicts if verdict and verdict.outcome is Outcome.INCONCLUSIVE)

    @property
    def block_s(self) -> float:
        """How long a block takes, all that belongs to it included; nan if fewer than two were measured."""
        begun = [datetime.fromisoformat(block.samples[0].started_at) for block in self.blocks if block.samples]
        return median([(after - before).total_seconds() for before, after in pairwise(begun)] or [math.nan])


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
        finished_at: the same; empty if it has not ended, or was not yet stored as ended.
        options: what the run was started with, as JSON values.
        workload, hardware: what was optimised, and where.
        costs: what separates the machine it was measured in from hardware; None if that was not measured.
        profile, meaning: the workload in numbers and in words; None if it was not observed, or has no words.
        iterations: one for each plan.
        best: the candidate that is better than the default scheduler by most; None if none is.
        insights: what a model concluded from the trials.
        model: what the run used of models; None if it asked none.
        out_of_time: whether its time budget cut something short that would have run.
        complete: whether it has ended; if not, the report shows what is known so far.
        verified_by: who verified the candidates, sorted.
        decisions: of people, oldest first.
        waiting: what the run waits for; None if it waits for nothing.
        failure: why the run failed; None if it did not.
        deployment: the token that a complete run issues for its winner; None if it issues none.
    """

    run: str
    started_at: str
    finished_at: str
    options: Mapping[str, Any]
    workload: WorkloadCommand
    hardware: Hardware
    costs: MachineCosts | None
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
    failure: RunFailure | None
    deployment: IssuedToken | None

    @property
    def title(self) -> str:
        """Its id, with the name that it was given."""
        name = self.options.get("name", "")
        return f"{self.run} ({name})" if name else self.run

    @property
    def outcome(self) -> str:
        """The result in a few words, for lists of runs."""
        if self.best:
            return "better"
        verdicts = (entry.verdict for entry in self.candidates)
        traded = any(verdict and verdict.outcome is Outcome.TRADE_OFF for verdict in verdicts)
        return Outcome.TRADE_OFF.value if traded else "keep the default scheduler"

    @property
    def candidates(self) -> Iterator[CandidateReport]:
        """The candidates of all iterations, in their order."""
        for iteration in self.iterations:
            yield from iteration.candidates
