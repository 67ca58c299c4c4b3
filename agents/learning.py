"""The Learning agent: turns what was measured into verdicts, lessons and antipatterns, and decides whether to continue.

`learn` and `best` are rules. `conclude` has a model put into words what the trials teach; a verdict, a promotion or an
antipattern never follows from its words.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime

from agents.claims import figures_of, measured_only
from agents.evidence import holds
from agents.schemas import Claimed, Reflected
from agents.session import ModelSession, in_short
from agents.summaries import meaning_text, metrics_text, tried_text
from schedagent.core.policies.policy import CandidatePolicy, PolicyInfo
from schedagent.core.trials.judge import Terms, failed
from schedagent.core.trials.lesson import Antipattern, Claim, Insight, Meaning, Relation
from schedagent.core.trials.race import candidates_of
from schedagent.core.trials.trial import DEFAULT_ARM, Block, Outcome, Verdict
from schedagent.core.verification import GateStatus, VerificationReport


@dataclass(frozen=True)
class Lessons:
    """What one iteration taught.

    Args:
        verdicts: by candidate key, for every candidate of the plan.
        antipatterns: candidates not to be planned again.
    """

    verdicts: Mapping[str, Verdict]
    antipatterns: tuple[Antipattern, ...]


def learn(
    candidates: Sequence[CandidatePolicy],
    library: Mapping[str, PolicyInfo],
    reports: Mapping[str, VerificationReport],
    measured: Mapping[str, Verdict],
    *,
    workload_key: str,
    hardware_key: str,
    rejected: str = "",
) -> Lessons:
    """Draw the lessons of one iteration.

    Args:
        library: where the candidates' policies come from.
        reports: verification reports by candidate key; a candidate without one was not reached.
        measured: verdicts by candidate key from the blocks.
        workload_key, hardware_key: where the lessons apply.
        rejected: who rejected the whole plan before it was carried out, and why; empty if nobody did.
    """
    verdicts: dict[str, Verdict] = {}
    antipatterns: list[Antipattern] = []
    for candidate in candidates:
        report, digest = reports.get(candidate.key), _content_digest(candidate, library)
        gate = report.failure if report and not report.safe else None
        verdict = measured[candidate.key]
        if gate:
            verdict = failed([f"gate {gate.gate!r} failed: {gate.detail}"])
            antipatterns.append(_antipattern(candidate, digest, "", hardware_key, gate.gate, gate.detail))
        elif rejected:
            verdict = replace(verdict, reason=f"not tried: {rejected}")
        elif not candidate.loads_itself and (not report or not report.safe or report.undecided):
            verdict = replace(verdict, reason=_why_unmeasured(report))
        elif verdict.outcome is Outcome.FAILED:
            antipatterns.append(_antipattern(candidate, digest, workload_key, hardware_key, "trial", verdict.reason))
        verdicts[candidate.key] = verdict
    return Lessons(verdicts, tuple(antipatterns))


def _content_digest(candidate: CandidatePolicy, library: Mapping[str, PolicyInfo]) -> str:
    """Return what tells whether the candidate's source, or its program, is still the one that was tried."""
    return candidate.program.digest if candidate.program else library[candidate.policy].source_digest


def _why_unmeasured(report: VerificationReport | None) -> str:
    """Return why a candidate that failed no gate was not measured."""
    if report is None:
        return "not reached: the time was used up before it could be verified"
    gate = next(gate for gate in report.gates if gate.status is not GateStatus.PASSED)
    return f"gate {gate.gate!r} did not complete: {gate.detail}"


def _antipattern(
    candidate: CandidatePolicy, digest: str, workload_key: str, hardware_key: str, gate: str, reason: str
) -> Antipattern:
    now = datetime.now(UTC).isoformat()
    return Antipattern(
        candidate.policy,
        candidate.key,
        candidate.tunables,
        workload_key,
        hardware_key,
        gate,
        reason,
        now,
        digest,
    )


@dataclass(frozen=True)
class Trials:
    """The trials of one iteration.

    Args:
        tried: its candidates, with their verdicts.
        blocks: what was measured: the only evidence there is.
        terms: what verdicts go by.
    """

    tried: Sequence[tuple[CandidatePolicy, Verdict]]
    blocks: Sequence[Block]
    terms: Terms

    @property
    def measured(self) -> set[str]:
        """Keys of the candidates that ran."""
        return {arm for block in self.blocks for arm in candidates_of(block)}

    def holds(self, claim: Claim) -> bool:
        """Whether the samples bear out a claim."""
        verdicts = {candidate.key: verdict for candidate, verdict in self.tried}
        return holds(claim, self.blocks, verdicts, self.terms)


def conclude(
    session: ModelSession, trials: Trials, *, meaning: Meaning | None, run_id: str, iteration: int
) -> tuple[Insight, ...]:
    """Have a model draw insights from the trials of one iteration; none without trials, or without an answer.

    An insight is what it claims, each claim borne out by the samples; its words stand beside that.

    Args:
        meaning: what observation made of the workload.
        iteration: from 0.
    """
    if not trials.measured:
        return ()
    sections = {
        "workload in words": meaning_text(meaning),
        "trials": tried_text(trials.tried),
        "metrics": metrics_text(trials.terms.workload),
    }
    answer = session.ask("learning", iteration, session.question("What do these trials teach?", sections), Reflected)
    now = datetime.now(UTC).isoformat()
    insights = []
    for number, wrong in answer.unreadable.items() if answer else ():
        session.note("learning", iteration, f"insight {number} cannot be read: {in_short(wrong)}")
    for concluded in answer.insights if answer else ():
        claims = [_claim(claimed, trials.tried) for claimed in concluded.claims]
        shown = [claim for claim in claims if trials.holds(claim)]
        if len(shown) == len(claims):
            insights.append(_insight(concluded.text, shown, trials, run_id, now))
        else:
            session.note("learning", iteration, "an insight was refused: the samples do not show what it claims")
    return tuple(insights)


def _claim(claimed: Claimed, tried: Sequence[tuple[CandidatePolicy, Verdict]]) -> Claim:
    """Return a claim in one form: what is worse is what the other is better than."""
    names = {DEFAULT_ARM: "the default"} | {candidate.key: candidate.label for candidate, _verdict in tried}
    arms = [DEFAULT_ARM if arm == "default" else arm or "?" for arm in (claimed.arm, claimed.than)]
    first, second = reversed(arms) if claimed.relation == "worse" else arms
    relation = Relation.SAME if claimed.relation == "same" else Relation.BETTER
    return Claim(first, relation, second, claimed.metric, (names.get(first, first), names.get(second, second)))


def _insight(text: str, claims: Sequence[Claim], trials: Trials, run_id: str, now: str) -> Insight:
    """Return an insight; of its words only what invents no figure."""
    arms = (arm for claim in claims for arm in (claim.arm, claim.other))
    evidence = tuple(dict.fromkeys(arm for arm in arms if arm != DEFAULT_ARM))
    known = figures_of(*(verdict for candidate, verdict in trials.tried if candidate.key in evidence))
    insight = Insight("", evidence, run_id, now, tuple(dict.fromkeys(claims)))
    return replace(insight, text=measured_only(text, known) or insight.measured)


def best(verdicts: Mapping[str, Verdict], *, lower_is_better: bool) -> str | None:
    """Return the key of the candidate that is better than the default by most; None if none is."""
    better = {key: verdict for key, verdict in verdicts.items() if verdict.outcome is Outcome.BETTER}
    if not better:
        return None
    return min(better, key=lambda key: better[key].claim[0] if lower_is_better else -better[key].claim[0])
