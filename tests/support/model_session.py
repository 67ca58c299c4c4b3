"""What the tests of the model's agents share: a session on a scripted endpoint, a profile, a builder that makes."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from agents.llm.budget import Budget
from agents.llm.fences import Fence
from agents.llm.model import open_model
from agents.llm.transcript import Transcript, transcript_path
from agents.observation import build_profile
from agents.session import ModelSession
from schedagent.core.errors import PolicyError
from schedagent.core.policies.policy import CandidatePolicy
from schedagent.core.policies.proposal import Origin, Proposal
from schedagent.core.trials.trial import Outcome, Verdict
from tests.support.scripted_endpoint import settings_for, waits_skipped
from tests.support.scripted_lab import HARDWARE, LIBRARY, WORKLOAD, long_tail

PROFILE = build_profile(long_tail())
PLACE = (WORKLOAD, HARDWARE)


@dataclass
class Told:
    """A reporter that remembers."""

    lines: list[str] = field(default_factory=list)

    def step(self, text: str) -> None:
        self.lines.append(text)


@dataclass
class Maker:
    """A builder without a kitchen: a candidate is what was proposed, or an error if the policy is named so."""

    asked: list[Proposal] = field(default_factory=list)

    def make(self, proposal: Proposal, _profile) -> CandidatePolicy:
        self.asked.append(proposal)
        if proposal.policy == "cannot":
            raise PolicyError("the diff does not apply: hunk 1, line 7", "take the lines as they are")
        source = (
            (proposal.diff or proposal.source or str(proposal.spec or ""))
            if proposal.origin != Origin.CONFIGURE
            else ""
        )
        name = f"{proposal.policy}{len(source)}" if source else proposal.policy
        tunables = tuple(sorted(proposal.tunables.items()))
        told = {"reason": proposal.reason, "expected": proposal.expected, "refuted_by": proposal.refuted_by}
        return CandidatePolicy(name, tunables, origin=proposal.origin, **told)


@contextmanager
def session_on(server, folder: Path, run_id: str = "run", tools=(), **changed):
    """Open the models of one run, with a transcript in this folder; waits between attempts take no time."""
    settings = replace(settings_for(server, **changed), state_dir=folder)
    with waits_skipped(), Transcript(transcript_path(folder, run_id), run_id) as transcript:
        budget = Budget.of(settings, transcript.earlier)

        def open_agent(role):
            return open_model(settings, role, budget=budget, journal=transcript)

        yield ModelSession(open_agent, Fence(transcript.mark), budget, transcript, Told(), lambda _role: tools)


def proposed(policy="longest_first", origin="configure", **changed):
    """Return a proposal as a model answers it."""
    told = {"expected": "the long task ends earlier", "refuted_by": "no shorter makespan", "reason": "one long task"}
    return {"origin": origin, "policy": policy, **told} | changed


def verdict(outcome=Outcome.BETTER, ratio=0.8, pairs=8, reason="measured so"):
    return Verdict(outcome, ratio, ratio - 0.02, ratio + 0.02, 0.95, pairs, 0, reason)


__all__ = ["HARDWARE", "LIBRARY", "PLACE", "PROFILE", "WORKLOAD", "Maker", "Told", "proposed", "session_on", "verdict"]
