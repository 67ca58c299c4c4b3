"""What becomes of a policy that a model wrote and that failed: a model repairs it, has it retried, or abandons it.

The model is shown only what a repair needs: the policy, what was found, and where.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Protocol

from agents.claims import Figures, figures_of_report, without_claims
from agents.planning import LONGEST_REASON
from agents.schemas import Decided, DecidedOnSource, DecidedOnSpec
from agents.session import ModelSession, answered, in_short
from agents.summaries import excerpts_text, rejection_text
from schedagent.core.errors import PolicyError, UsageError
from schedagent.core.policies.policy import CandidatePolicy
from schedagent.core.policies.proposal import DerivedPolicy, Origin, Proposal
from schedagent.core.terminal.foreign import quote
from schedagent.core.trials.workload import WorkloadProfile
from schedagent.core.verification import VerificationReport

_AGAIN = "This repair cannot be made. Answer in the same form, with one that can, or abandon the policy."


class PolicyBuilder(Protocol):
    """Makes candidates; see agents.planner.builder.PolicyBuilder."""

    def make(self, proposal: Proposal, profile: WorkloadProfile) -> CandidatePolicy: ...


@dataclass(frozen=True)
class Repair:
    """What is to be done with a candidate.

    Args:
        repaired: the candidate to try in its place; None for no repair.
        retry: try it once more as it is.
    """

    repaired: CandidatePolicy | None = None
    retry: bool = False


NOTHING = Repair()


@dataclass(frozen=True)
class ModelRepairer:
    """Asks a model.

    Args:
        made: the texts of a policy that did not come with the program; None for one that did.
        profile: that inputs are filled from.
        iteration: of the run, from 0.
    """

    session: ModelSession
    builder: PolicyBuilder
    made: Callable[[str], DerivedPolicy | None]
    profile: WorkloadProfile
    iteration: int

    def after_gate(self, candidate: CandidatePolicy, report: VerificationReport) -> Repair:
        """Decide what becomes of a candidate that a gate rejected."""
        policy = self.made(candidate.policy)
        if policy is None:
            return NOTHING
        sections = {**_texts(policy), "what was found": rejection_text(report)}
        if policy.spec is None:
            sections["lines around the findings"] = excerpts_text(report, policy.source)
        task = f"A gate rejected {candidate.policy} (candidate {candidate.key}). Repair or abandon?"
        decision = self._decide(candidate, policy, task, sections, figures_of_report(report))
        return Repair(decision.repaired)  # what a gate rejects is never tried as it is

    def after_trial(self, candidate: CandidatePolicy, trouble: str, *, lost: bool) -> Repair:
        """Decide what becomes of a candidate that failed in its trial.

        Args:
            trouble: what was seen.
            lost: whether its machine was lost, which is no evidence against it.
        """
        policy = self.made(candidate.policy)
        if policy is None:
            return NOTHING
        happened = "was lost in its trial with its machine" if lost else "failed in its trial"
        sections = {**_texts(policy), "what was found": trouble}
        task = f"{candidate.policy} (candidate {candidate.key}) {happened}. What now?"
        decision = self._decide(candidate, policy, task, sections, Figures())
        return decision if lost else Repair(decision.repaired)

    def _decide(
        self, candidate: CandidatePolicy, policy: DerivedPolicy, task: str, sections: Mapping[str, str], known: Figures
    ) -> Repair:
        """Ask; a repair that cannot be made is asked for once more.

        Args:
            known: figures that may stand in its reason.
        """
        messages = self.session.question(task, sections)
        schema: type[Decided] = DecidedOnSource if policy.spec is None else DecidedOnSpec
        for _attempt in range(2):
            decided = self.session.ask("execution", self.iteration, messages, schema)
            if decided is None or decided.decision != "repair":
                return self._unrepaired(candidate, decided, known)
            try:
                reason = quote(without_claims(decided.reason, known), LONGEST_REASON)
                repaired = self.builder.make(_proposal(candidate, decided, reason), self.profile)
                if repaired.key == candidate.key:
                    raise UsageError("it changes nothing: this is the policy that failed")
                return Repair(repaired)
            except (PolicyError, UsageError) as error:
                note = f"the repair of {candidate.policy} cannot be made: {in_short(error.message)}"
                self.session.note("execution", self.iteration, note)
                messages += [answered(decided), *self.session.question(_AGAIN, {"what is wrong": str(error)})]
        return NOTHING

    def _unrepaired(self, candidate: CandidatePolicy, decided: Decided | None, known: Figures) -> Repair:
        if decided is None:
            return NOTHING
        note = f"{candidate.policy}: {decided.decision}: {quote(without_claims(decided.reason, known))}"
        self.session.note("execution", self.iteration, note)
        return Repair(retry=decided.decision == "retry")


def _texts(policy: DerivedPolicy) -> dict[str, str]:
    """Return what the model wrote: a spec, or C."""
    if policy.spec is not None:
        return {"spec": json.dumps(policy.spec)}
    return {"source": policy.source}


def _proposal(candidate: CandidatePolicy, decided: Decided, reason: str) -> Proposal:
    """Return the repair as a proposal of the policy's own origin; a diff is against the policy that failed."""
    proposal = Proposal(
        origin=candidate.origin,
        policy=candidate.policy,
        reason=reason,
        expected=candidate.expected,
        refuted_by=candidate.refuted_by,
    )
    if isinstance(decided, DecidedOnSpec):
        return replace(proposal, origin=Origin.COMPOSE, spec=decided.spec)
    if isinstance(decided, DecidedOnSource) and decided.diff:
        return replace(proposal, origin=Origin.PATCH, diff=decided.diff)
    return replace(
        proposal, origin=Origin.GENERATE, source=decided.source if isinstance(decided, DecidedOnSource) else ""
    )
