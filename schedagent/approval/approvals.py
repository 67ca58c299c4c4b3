"""What a run shows to a person before it continues, and whether the person agreed.

What is shown is built from the repository and the library alone, so any process builds the same, and its digest shows
whether it is still what the person saw. A decision is in the repository before the graph continues: a crash in between
loses nothing, and nothing is asked twice.
"""

from __future__ import annotations

import difflib
import os
import pwd
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from agents.learning import best
from repo_store.records import RunStatus
from repo_store.store import PolicyRepository
from schedagent.core import token
from schedagent.core.approval import ApprovalRequest, ApprovalStage, Decision
from schedagent.core.errors import TokenError, UsageError
from schedagent.core.policies.policy import CandidatePolicy, PolicyInfo
from schedagent.core.policies.program import SchedulerProgram
from schedagent.core.policies.proposal import Origin
from schedagent.core.rules import NEVER_RAN
from schedagent.core.trials.trial import Verdict
from schedagent.core.verification import Severity, VerificationReport

LONGEST_REASON = 1000
"""Characters of --because: it is kept, and a planner reads it."""

Shown = dict[str, Any]

_PLAN_ALLOWS = (
    "Each is verified in a sealed micro-VM; those that pass every gate run the workload in another one. Code of a "
    "model that a gate refuses may be repaired by it, and goes through every gate again. Nothing is loaded on this "
    "machine."
)

_PROGRAMS_ALLOWED = (
    " A program that loads its policy itself is not verified: it is started as root in that micro-VM, and nowhere else."
)


class Approvals:
    """The questions of one run.

    Args:
        repository: with the run in it.
        run_id: of the run.
        library: the policies, those that the run made included.
        stages: before which steps it asks.
    """

    def __init__(
        self,
        repository: PolicyRepository,
        run_id: str,
        library: Mapping[str, PolicyInfo],
        stages: tuple[ApprovalStage, ...],
    ) -> None:
        self._repository = repository
        self._run_id = run_id
        self._library = library
        self._stages = stages

    def request(self, stage: ApprovalStage, iteration: int) -> ApprovalRequest | None:
        """Return what has to be approved before this step; None if nothing has to be."""
        if stage not in self._stages:
            return None
        shown = self._plan(iteration) if stage is ApprovalStage.PLAN else self._deployment()
        return ApprovalRequest(stage, iteration, shown) if shown else None

    def decision(self, request: ApprovalRequest) -> Decision | None:
        """Return what was decided on exactly this; None if nothing was."""
        decisions = {stored.digest: decision for stored, decision in self._repository.approvals(self._run_id)}
        return decisions.get(request.digest)

    def ask(self, request: ApprovalRequest) -> Shown:
        """Store what the run waits for, and return it."""
        self._repository.ask_approval(self._run_id, request)
        return to_json(request)

    def decide(self, decision: Decision, digest: str = "") -> None:
        """Store a decision on what the run waits for.

        Args:
            digest: that what waits must have, or how it begins; empty for whatever waits.

        Raises:
            UsageError: nothing waits, or something else, or it changed since it was shown.
        """
        request = waiting(self._repository, self._run_id)
        if request is None:
            raise _nothing_waits(self._repository, self._run_id)
        look = f"look at what waits: schedagent runs show {self._run_id}"
        if not request.digest.startswith(digest):
            raise UsageError(f"run {self._run_id} waits for the approval of {request.digest}, not of {digest}", look)
        now = self.request(request.stage, request.iteration)
        if now is None or now.digest != request.digest:
            if now:
                self.ask(now)
            raise UsageError(f"what run {self._run_id} waits for has changed since it was shown", look)
        self._repository.decide_approval(self._run_id, request.digest, decision)

    def _plan(self, iteration: int) -> Shown | None:
        plan = self._repository.plan(self._run_id, iteration)
        if plan is None or not plan.candidates:
            return None
        return {
            "run": self._run_id,
            "workload": self._repository.run(self._run_id).workload.command,
            "reason": plan.reason,
            "learned": plan.learned,
            "candidates": [self._candidate(candidate) for candidate in plan.candidates],
            "allows": _PLAN_ALLOWS + _PROGRAMS_ALLOWED * any(each.loads_itself for each in plan.candidates),
        }

    def _deployment(self) -> Shown | None:
        won = winner(self._repository, self._run_id)
        if won is None or not won[2].token or not _is_current(won[2].token):
            return None
        candidate, verdict, report = won
        return {
            "run": self._run_id,
            "workload": self._repository.run(self._run_id).workload.command,
            "candidate": self._candidate(candidate),
            "verdict": {"outcome": verdict.outcome.value, "reason": verdict.reason, "pairs": verdict.pairs},
            "measured": {
                **dict(zip(("ratio", "low", "high"), verdict.claim, strict=True)),
                "confidence": verdict.confidence,
            },
            "verification": _verification(report),
            "allows": allowed(report.token),
        }

    def _candidate(self, candidate: CandidatePolicy) -> Shown:
        if candidate.program:
            return _planned(candidate) | _program(candidate.program)
        info = self._library.get(candidate.policy)
        if info is None:
            raise UsageError(f"policy {candidate.policy} is not in the library any more", "start a new run")
        defaults = {tunable.name: tunable.default for tunable in info.tunables}
        specs = {made.name: made.spec for made in self._repository.derived_policies()}
        return {
            **_planned(candidate),
            "policy_origin": info.origin.label,
            "parent": info.parent,
            "description": info.description,
            "declares": list(info.declares),
            "reads": list(info.reads),
            "tunables": {
                name: {"value": value, "default": defaults.get(name, value)} for name, value in candidate.tunables
            },
            "source_digest": info.source_digest,
            "spec": specs.get(candidate.policy),
            "diff": _diff(info, self._library.get(info.parent)),
        }


def _planned(candidate: CandidatePolicy) -> Shown:
    """Return what a planner gave every candidate, whatever its origin."""
    return {
        "key": candidate.key,
        "policy": candidate.policy,
        "origin": candidate.origin.value,
        "reason": candidate.reason,
        "expected": candidate.expected,
        "refuted_by": candidate.refuted_by,
        "inputs": {"history": len(candidate.history), "classes": len(candidate.classes)},
    }


def _program(program: SchedulerProgram) -> Shown:
    return {
        "policy_origin": Origin.PROGRAM.label,
        "parent": "",
        "description": "",
        "declares": [],
        "reads": [],
        "tunables": {},
        "source_digest": program.digest,
        "spec": None,
        "diff": "",
        "argv": program.argv,
    }


def waiting(repository: PolicyRepository, run_id: str) -> ApprovalRequest | None:
    """Return what a run waits for; None if it waits for nothing."""
    return next((request for request, decision in repository.approvals(run_id) if decision is None), None)


def rejection(repository: PolicyRepository, run_id: str, stage: ApprovalStage, iteration: int) -> Decision | None:
    """Return the decision by which this step was rejected; None if it was not. The latest decision counts."""
    made = [
        decision
        for request, decision in repository.approvals(run_id)
        if decision and (request.stage, request.iteration) == (stage, iteration)
    ]
    return None if not made or _latest(made).approved else _latest(made)


def winner(repository: PolicyRepository, run_id: str) -> tuple[CandidatePolicy, Verdict, VerificationReport] | None:
    """Return the candidate that is better than the default by most, with what was found; None if none is."""
    verdicts: dict[str, Verdict] = {}
    candidates: dict[str, CandidatePolicy] = {}
    for number in repository.iterations(run_id):
        candidates |= {candidate.key: candidate for candidate in repository.candidates(run_id, number)}
        verdicts |= repository.verdicts(run_id, number)
    key = best(verdicts, lower_is_better=repository.run(run_id).workload.goal.lower_is_better)
    report = repository.verification(run_id, key) if key else None
    return (candidates[key], verdicts[key], report) if key and report else None


def deployment(repository: PolicyRepository, run_id: str) -> Shown | None:
    """Return the winner's token as a finished run issues it, with what it allows and who approved that.

    This is the only way a run's token leaves the repository. None: there is no winner, no token, or no approval where
    the run had to ask for one; or the run measured a candidate that somebody else proposed, which only informs.
    """
    won, options = winner(repository, run_id), repository.run(run_id).settings
    if won is None or not won[2].token or not _is_current(won[2].token) or options.get("proposal"):
        return None
    made = [
        decision
        for request, decision in repository.approvals(run_id)
        if decision and request.stage is ApprovalStage.DEPLOY
    ]
    must_ask = ApprovalStage.DEPLOY in options.get("approve", ())
    if must_ask and not (made and _latest(made).approved):
        return None
    candidate, _verdict, report = won
    return {
        "policy": candidate.policy,
        "key": candidate.key,
        "token": report.token,
        "allows": allowed(report.token),
        "approved_by": _latest(made).by if made else "",
    }


def decided_now(approved: bool, because: str = "") -> Decision:
    """Return a decision of this process's user.

    Raises:
        UsageError: a rejection without a reason, or a reason that cannot be kept.
    """
    reason = " ".join(because.split())
    if not approved and not reason:
        raise UsageError("--because is empty", "say why, so that the next plan can do better")
    if len(reason) > LONGEST_REASON or not reason.isprintable():
        raise UsageError(f"--because is not a line of at most {LONGEST_REASON} printable characters")
    return Decision(approved, user(), datetime.now(UTC).isoformat(timespec="milliseconds"), reason)


def to_json(request: ApprovalRequest) -> Shown:
    """Return a request with its digest as JSON values."""
    return {
        "stage": request.stage.value,
        "iteration": request.iteration + 1,
        "digest": request.digest,
        **request.shown,
    }


def _is_current(token_text: str) -> bool:
    """Whether a token is of this version; no older one is valid any more, wherever it is shown."""
    return not token_text.startswith(token.OLDER_PREFIXES)


def allowed(token_text: str) -> Shown:
    """Return what a token allows whoever holds it."""
    try:
        permit = token.decode(token_text)
    except TokenError as error:
        raise UsageError(f"the stored token of the winner cannot be read: {error.message}") from None
    return {
        "object": permit.artifact_digest,
        "kernel": permit.kernel_release,
        "scope": permit.scope.value,
        "cgroup": permit.cgroup,
        "declares": list(permit.declares),
        "reads": list(permit.reads),
        "times": 1,
        "from": _moment(permit.not_before),
        "until": _moment(permit.expires_at),
    }


def _diff(info: PolicyInfo, parent: PolicyInfo | None) -> str:
    """Return what a patch changes in its parent, or all that was generated.

    A bundled policy changes nothing, and a composed one has it all in its spec.
    """
    if info.origin in (Origin.BUNDLED, Origin.COMPOSE):
        return ""
    before = parent.source.read_text(encoding="utf-8").splitlines(keepends=True) if parent else []
    after = info.source.read_text(encoding="utf-8").splitlines(keepends=True)
    names = (parent.source.name if parent else "/dev/null", info.source.name)
    return "".join(difflib.unified_diff(before, after, *names))


def _verification(report: VerificationReport) -> Shown:
    open_warnings = [
        finding for finding in report.findings if finding.severity is Severity.WARNING and not report.clears(finding)
    ]
    return {
        "gates": [{"gate": gate.gate, "status": gate.status.value, "detail": gate.detail} for gate in report.gates],
        "statuses": dict(Counter(gate.status.value for gate in report.gates)),
        "oracles": {"held": sum(oracle.ok for oracle in report.oracles), "of": len(report.oracles)},
        "kernels": {kernel.release: kernel.status.value for kernel in report.kernels},
        "warnings": [str(finding) for finding in open_warnings],
        "coverage": report.coverage.summary if report.coverage else "",
        "never_ran": [str(finding) for finding in report.findings if finding.rule == NEVER_RAN],
        "verified_by": report.verified_by,
        "report_digest": report.digest,
    }


def _nothing_waits(repository: PolicyRepository, run_id: str) -> UsageError:
    """Return the error for a run with nothing to decide: no such run, decided already, not that far, over."""
    run = repository.run(run_id)
    made = [decision for _asked, decision in repository.approvals(run_id) if decision]
    message = f"run {run_id} does not wait for an approval"
    if made:
        message += f"; its last question was {made[-1].in_words} at {made[-1].at}"
    if run.status is RunStatus.FINISHED:
        return UsageError(message, f"it is finished; see what it found: schedagent runs show {run_id}")
    if run.failure:
        return UsageError(message, f"it failed; see why: schedagent runs show {run_id}")
    return UsageError(message, f"it is {run.status.value}; continue it: schedagent resume {run_id}")


def _latest(made: Sequence[Decision]) -> Decision:
    return max(made, key=lambda decision: decision.at)


def user() -> str:
    """Name the user by the process's own id: the environment could contain anything."""
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        return f"user {os.getuid()}"


def _moment(unix_s: int) -> str:
    return datetime.fromtimestamp(unix_s, UTC).isoformat(timespec="seconds")
