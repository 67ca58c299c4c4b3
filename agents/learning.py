"""The Learning agent: turns what was measured into verdicts, lessons and antipatterns, and decides whether to continue.

`learn` and `best` are rules. `conclude` has a model put into words what the trials teach; a verdict, a promotion or an
antipattern never follows from its words.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime

from agents.claims import without_claims
from agents.schemas import Reflected
from agents.session import ModelSession
from agents.summaries import meaning_text, tried_text
from schedagent.core.policies.policy import CandidatePolicy, PolicyInfo
from schedagent.core.trials.judge import failed
from schedagent.core.trials.lesson import Antipattern, Insight, Meaning
from schedagent.core.trials.trial import Outcome, Verdict
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
        report, info = reports.get(candidate.key), library[candidate.policy]
        gate = report.failure if report else None
        verdict = measured[candidate.key]
        if gate:
            verdict = failed([f"gate {gate.gate!r} failed: {gate.detail}"])
            antipatterns.append(_antipattern(candidate, info, "", hardware_key, gate.gate, gate.detail))
        elif not report or not report.passed:
            verdict = replace(verdict, reason=f"not tried: {rejected}" if rejected else _why_unmeasured(report))
        elif verdict.outcome is Outcome.FAILED:
            antipatterns.append(_antipattern(candidate, info, workload_key, hardware_key, "trial", verdict.reason))
        verdicts[candidate.key] = verdict
    return Lessons(verdicts, tuple(antipatterns))


def _why_unmeasured(report: VerificationReport | None) -> str:
    """Return why a candidate that failed no gate was not measured."""
    if report is None:
        return "not reached: the time was used up before it could be verified"
    gate = next(gate for gate in report.gates if gate.status is not GateStatus.PASSED)
    return f"gate {gate.gate!r} did not complete: {gate.detail}"


def _antipattern(
    candidate: CandidatePolicy, info: PolicyInfo, workload_key: str, hardware_key: str, gate: str, reason: str
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
        info.source_digest,
    )


def conclude(
    session: ModelSession,
    tried: Sequence[tuple[CandidatePolicy, Verdict]],
    measured: Collection[str],
    *,
    meaning: Meaning | None,
    run_id: str,
    iteration: int,
) -> tuple[Insight, ...]:
    """Have a model draw insights from the trials of one iteration; none without trials, or without an answer.

    Args:
        tried: the candidates of the iteration, with their verdicts.
        measured: keys of those that ran: the only evidence there is.
        meaning: what observation made of the workload.
        iteration: from 0.
    """
    if not measured:
        return ()
    sections = {"workload in words": meaning_text(meaning), "trials": tried_text(tried)}
    answer = session.ask("learning", iteration, session.question("What do these trials teach?", sections), Reflected)
    now = datetime.now(UTC).isoformat()
    insights = []
    for insight in answer.insights if answer else ():
        if set(insight.evidence) <= set(measured):
            text = without_claims(insight.text, sections["trials"])
            insights.append(Insight(text, tuple(dict.fromkeys(insight.evidence)), run_id, now))
        else:
            session.note("learning", iteration, "an insight was refused: its evidence was not measured")
    return tuple(insights)


def best(verdicts: Mapping[str, Verdict], *, lower_is_better: bool) -> str | None:
    """Return the key of the candidate that is better than the default by most; None if none is."""
    better = {key: verdict for key, verdict in verdicts.items() if verdict.outcome is Outcome.BETTER}
    if not better:
        return None
    return min(better, key=lambda key: better[key].claim[0] if lower_is_better else -better[key].claim[0])
