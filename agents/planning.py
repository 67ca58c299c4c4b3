"""Planning: ask the repository what is known, let rules or a model decide, and accept only candidates that can exist.

`propose` asks the rules of agents/planner/rules.py; `propose_with_model` asks a model for proposals, has the policy
builder make candidates of them, and reports to the model once which could not be made.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import count
from typing import Protocol

from agents import plain_text
from agents.claims import (
    Figures,
    figures_of,
    figures_of_place,
    figures_of_policies,
    figures_of_profile,
    set_values,
    without_claims,
)
from agents.schemas import Planned, Proposed, one_line
from agents.session import ModelSession, answered, in_short
from agents.summaries import (
    antipatterns_text,
    insights_text,
    lessons_text,
    library_text,
    meaning_text,
    profile_text,
    tried_text,
    workload_text,
)
from schedagent.core.errors import PolicyError, UsageError
from schedagent.core.policies.policy import CandidatePolicy, Plan, PolicyInfo
from schedagent.core.policies.proposal import Origin, Proposal
from schedagent.core.terminal.foreign import quote
from schedagent.core.trials.lesson import Antipattern, Insight, Lesson, Meaning
from schedagent.core.trials.trial import Hardware, Verdict
from schedagent.core.trials.workload import WorkloadCommand, WorkloadProfile

LONGEST_REASON = 350
"""Characters of a model's reason that are kept, between their quotation marks."""


class LessonStore(Protocol):
    """Where earlier results are kept."""

    def lessons(self, workload_key: str, hardware_key: str) -> Sequence[Lesson]: ...

    def antipatterns(self, workload_key: str, hardware_key: str) -> Sequence[Antipattern]: ...


class Planner(Protocol):
    """Decides what to try next; see agents.planner.rules.plan for the arguments."""

    def __call__(
        self,
        profile: WorkloadProfile,
        library: Mapping[str, PolicyInfo],
        lessons: Sequence[Lesson],
        antipatterns: Sequence[Antipattern],
        *,
        iteration: int,
        tried: Sequence[tuple[CandidatePolicy, Verdict]],
        limit: int,
        lower_is_better: bool,
    ) -> Plan: ...


def propose(
    planner: Planner,
    store: LessonStore,
    library: Mapping[str, PolicyInfo],
    *,
    workload: WorkloadCommand,
    hardware: Hardware,
    profile: WorkloadProfile,
    iteration: int,
    tried: Sequence[tuple[CandidatePolicy, Verdict]] = (),
    limit: int = 3,
) -> Plan:
    """Return the next plan of a run.

    Raises:
        PolicyError: the planner proposed a policy that the library does not have, or inputs that it does not take.
        TunableError: the planner proposed a tunable that does not exist or is out of range.
        RepositoryError: the repository cannot be read.
    """
    plan = planner(
        profile,
        library,
        store.lessons(workload.key, hardware.key),
        [pattern for pattern in store.antipatterns(workload.key, hardware.key) if still_holds(pattern, library)],
        iteration=iteration,
        tried=tried,
        limit=limit,
        lower_is_better=workload.goal.lower_is_better,
    )
    for candidate in plan.candidates:
        check_candidate(candidate, library)
    return plan


def still_holds(pattern: Antipattern, library: Mapping[str, PolicyInfo]) -> bool:
    """Whether the policy that failed is still the one in the library; a repaired one deserves another try."""
    info = library.get(pattern.policy)
    return info is None or not pattern.source_digest or pattern.source_digest == info.source_digest


def check_candidate(candidate: CandidatePolicy, library: Mapping[str, PolicyInfo]) -> None:
    """Raise PolicyError or TunableError unless the library can make this candidate."""
    info = library.get(candidate.policy)
    if info is None:
        known = ", ".join(sorted(library)) or "none"
        raise PolicyError(f"the planner proposed a policy that does not exist: {candidate.policy!r}", f"known: {known}")
    info.configured(dict(candidate.tunables))
    for name, entries in (("history", candidate.history), ("classes", candidate.classes)):
        if entries and name not in info.inputs:
            raise PolicyError(
                f"the planner filled the input {name!r}, which {info.name} does not have",
                f"its inputs: {', '.join(info.inputs) or 'none'}",
            )


# --- with a model ---------------------------------------------------------------------------------------------------


class PolicyBuilder(Protocol):
    """Makes candidates; see agents.planner.builder.PolicyBuilder."""

    def make(self, proposal: Proposal, profile: WorkloadProfile) -> CandidatePolicy: ...


@dataclass(frozen=True)
class Known:
    """All that planning starts from.

    Args:
        workload, hardware, profile, meaning: what is to be scheduled, where, and what observing it has shown.
        policies: what the library offers.
        lessons, antipatterns, insights: of earlier runs on the same workload and hardware.
        similar: of earlier runs on other workloads, a line each.
        tried: candidates of this run with their verdicts.
        limit: candidates at most.
    """

    workload: WorkloadCommand
    hardware: Hardware
    profile: WorkloadProfile
    meaning: Meaning | None
    policies: Sequence[PolicyInfo]
    lessons: Sequence[Lesson] = ()
    antipatterns: Sequence[Antipattern] = ()
    insights: Sequence[Insight] = ()
    similar: Sequence[str] = ()
    tried: Sequence[tuple[CandidatePolicy, Verdict]] = ()
    limit: int = 3

    def sections(self) -> dict[str, str]:
        """Return it as the parts of a question, by their titles."""
        return {
            "workload": workload_text(self.workload, self.hardware),
            "profile": profile_text(self.profile),
            "what a model made of it": meaning_text(self.meaning),
            "history of this run": tried_text(self.tried),
            "exact match: verdicts on this workload": lessons_text(self.lessons),
            "what failed on this machine": antipatterns_text(self.antipatterns),
            "insights of earlier runs": insights_text(self.insights),
            "similar workloads": "\n".join(self.similar),
            "library": library_text(self.policies),
        }

    def figures(self) -> Figures:
        """Return all of it that was measured, or set; words of a model, a policy or a workload are none of that."""
        bundled = [info for info in self.policies if info.origin is Origin.BUNDLED]
        tried = [verdict for _candidate, verdict in self.tried]
        return (
            figures_of_place(self.workload, self.hardware)
            | figures_of_profile(self.profile)
            | figures_of_policies(bundled)
            | figures_of(*tried, *self.lessons)
        )


def propose_with_model(session: ModelSession, builder: PolicyBuilder, known: Known, iteration: int) -> Plan | None:
    """Return the next plan of a run as a model wants it; None if it gives none that can be made, which is noted.

    Args:
        iteration: from 0.

    Raises:
        RepositoryError: a policy that was made cannot be kept.
    """
    sections = known.sections()
    task = f"Propose candidates for this workload: {known.limit} at most."
    messages = session.question(task, sections)
    planned = session.ask("planning", iteration, messages, Planned)
    if planned is None:
        return None
    made = _Making(session, builder, known, iteration, known.figures())
    made.take(planned)
    if made.wrong and len(made.candidates) < known.limit:
        messages += [answered(planned), *session.question(_CORRECT, {"what is wrong": "\n".join(made.wrong)})]
        again = session.ask("planning", iteration, messages, Planned)
        if again:
            made.take(again)
    if (planned.proposals or planned.unreadable) and not made.candidates:
        session.note("planning", iteration, "none of its proposals could be made")
        return None
    return Plan(tuple(made.candidates), quote(made.plain(planned.reason)), _earlier_results(known))


def _design(proposal: Proposal) -> Figures:
    """Return the numbers of a proposal itself: what describes its policy may hold them, for they measure nothing."""
    return set_values([*_numbers(proposal.tunables), *_numbers(proposal.spec)])


def _numbers(value: object) -> Iterator[float]:
    """Yield the whole numbers of a spec."""
    if type(value) is int and abs(value) < 1 << 64:
        yield float(value)
    elif isinstance(value, Mapping):
        for part in value.values():
            yield from _numbers(part)
    elif isinstance(value, list | tuple):
        for part in value:
            yield from _numbers(part)


_CORRECT = (
    "Some proposals cannot be made. The others are kept. Answer in the same form, with replacements for these only; "
    "with none, if there is none."
)


def _earlier_results(known: Known) -> str:
    """Return which earlier results were in the question; empty if there were none."""
    parts = {
        "verdicts": known.lessons,
        "failures": known.antipatterns,
        "insights": known.insights,
        "similar runs": known.similar,
    }
    counts = ", ".join(f"{name} {len(records)}" for name, records in parts.items() if records)
    return f"the model was shown earlier runs ({counts})" if counts else ""


@dataclass
class _Making:
    """Makes candidates of proposals, and collects what is wrong with the others.

    Args:
        shown: what was measured; sentences that hold other figures are left out of its reasons.
    """

    session: ModelSession
    builder: PolicyBuilder
    known: Known
    iteration: int
    shown: Figures
    candidates: list[CandidatePolicy] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)

    def plain(self, text: str) -> str:
        """Return a model's words without figures that nobody measured."""
        return without_claims(text, self.shown)

    def take(self, planned: Planned) -> None:
        """Make what can be made, up to the limit."""
        for number, wrong in planned.unreadable.items():
            self._refuse(f"proposal {number}", "read", wrong, wrong)
        numbers = (number for number in count(1) if number not in planned.unreadable)
        for number, proposed in zip(numbers, planned.proposals, strict=False):
            if len(self.candidates) == self.known.limit:
                return
            try:
                self.candidates.append(self._make(proposed))
            except (PolicyError, UsageError) as error:
                what = f"proposal {number} ({proposed.origin} {one_line(proposed.policy)})"
                self._refuse(what, "made", error.message, str(error))

    def _refuse(self, what: str, verb: str, why: str, to_model: str) -> None:
        """Keep why a proposal is left out: for the report, and with all that helps for the model."""
        self.wrong.append(f"{what}: {to_model}")
        self.session.note("planning", self.iteration, f"{what} cannot be {verb}: {in_short(why)}")

    def _make(self, proposed: Proposed) -> CandidatePolicy:
        proposal = proposed.proposal()
        proposal = replace(
            proposal,
            description=without_claims(proposal.description, self.shown | _design(proposal)),
            reason=quote(self.plain(proposal.reason), LONGEST_REASON),
            expected=self.plain(proposal.expected),
            refuted_by=self.plain(proposal.refuted_by),
        )
        candidate = self.builder.make(proposal, self.known.profile)
        for tried, verdict in self.known.tried:
            if tried.key == candidate.key:
                raise UsageError(
                    f"this run has tried it: {plain_text.verdict(verdict)}", "propose what differs from it"
                )
        if any(other.key == candidate.key for other in self.candidates):
            raise UsageError("it is the same as an earlier proposal", "propose what differs from it")
        for failed in self.known.antipatterns:
            if failed.candidate_key == candidate.key:
                raise UsageError(f"it failed at {failed.gate} in an earlier run: {failed.reason}", "change it")
        return candidate
