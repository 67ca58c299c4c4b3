"""The Learning agent: turns what was measured into verdicts, lessons and antipatterns, and decides whether to go on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime

from schedagent.core.judge import failed
from schedagent.core.lesson import Antipattern
from schedagent.core.policy import CandidatePolicy, PolicyInfo
from schedagent.core.trial import Outcome, Verdict
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
        workload_key, hardware_key: what the lessons hold for.
        rejected: who rejected the whole plan before it was carried out, and why; empty if nobody did.
    """
    verdicts: dict[str, Verdict] = {}
    antipatterns: list[Antipattern] = []
    for candidate in candidates:
        report, info = reports.get(candidate.key), library[candidate.policy]
        gate = report.failure if report else None
        verdict = measured[candidate.key]
        if gate:
            verdict = failed([f"gate {gate.gate!r} closed: {gate.detail}"])
            antipatterns.append(_antipattern(candidate, info, "", hardware_key, gate.gate, gate.detail))
        elif not report or not report.passed:
            verdict = replace(verdict, reason=f"not tried: {rejected}" if rejected else _why_unmeasured(report))
        elif verdict.outcome is Outcome.FAILED:
            antipatterns.append(_antipattern(candidate, info, workload_key, hardware_key, "trial", verdict.reason))
        verdicts[candidate.key] = verdict
    return Lessons(verdicts, tuple(antipatterns))


def _why_unmeasured(report: VerificationReport | None) -> str:
    """Say why a candidate that failed no gate was not measured."""
    if report is None:
        return "not reached: the time was used up before it could be verified"
    gate = next(gate for gate in report.gates if gate.status is not GateStatus.PASSED)
    return f"gate {gate.gate!r} did not end: {gate.detail}"


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


def best(verdicts: Mapping[str, Verdict], *, lower_is_better: bool) -> str | None:
    """Return the key of the candidate that is better than the default by most; None if none is."""
    better = {key: verdict for key, verdict in verdicts.items() if verdict.outcome is Outcome.BETTER}
    if not better:
        return None
    return min(better, key=lambda key: better[key].ratio if lower_is_better else -better[key].ratio)
