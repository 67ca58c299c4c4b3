"""What the agent service recommends: a card for each, and as JSON values."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from datetime import datetime
from typing import Any

from schedagent.core.errors import UsageError
from schedagent.core.recommendation import ApplyRequest, Recommendation, Standing
from schedagent.core.terminal.console import open_console
from schedagent.report.tables import say, say_wrapped


def check_appliable(recommendation: Recommendation, now: float) -> None:
    """Raise UsageError that says why, if a recommendation cannot be acted upon (any more)."""
    reasons = {
        Standing.EXPIRED: f"expired at {moment(recommendation.expires_at)}",
        Standing.WITHDRAWN: f"was withdrawn: {recommendation.note}",
        Standing.APPLIED: f"was applied: {recommendation.note}",
    }
    reason = reasons.get(recommendation.at(now))
    if reason:
        hint = "see what is recommended now: schedagent recommendations"
        raise UsageError(f"recommendation {recommendation.id} {reason}", hint)


def show_recommendations(
    recommendations: Sequence[Recommendation], requests: Mapping[str, ApplyRequest], now: float
) -> None:
    """Print a card for each recommendation: what it is, why, on what evidence, and what came of it."""
    console = open_console()
    for number, entry in enumerate(recommendations):
        if number:
            say(console, "")
        say(console, f"{entry.id}  {entry.kind.value}, {_standing(entry, requests.get(entry.id), now)}")
        for line in _details(entry):
            say_wrapped(console, line, "    ")


def to_json(recommendation: Recommendation, request: ApplyRequest | None, now: float) -> dict[str, Any]:
    """Return a recommendation as JSON values, with the latest request for it."""
    times = {"since": moment(recommendation.since), "expires_at": moment(recommendation.expires_at)}
    latest = None if request is None else asdict(request)
    return {**asdict(recommendation), **times, "standing": recommendation.at(now).value, "request": latest}


def moment(unix_s: float) -> str:
    """Return a time for people: local, to the minute."""
    return datetime.fromtimestamp(unix_s).astimezone().isoformat(sep=" ", timespec="minutes")


def evidence_text(evidence: Mapping[str, Any]) -> str:
    """Return in short what a recommendation rests on; empty if it rests on nothing that was stored."""
    if "run" in evidence:
        low, high = evidence["interval"]
        return (
            f"run {evidence['run']}, trial {evidence['trial']}: ratio {evidence['ratio']:.3f} "
            f"({low:.3f} to {high:.3f}) in {evidence['pairs']} pairs, {evidence['lab']}, kernel {evidence['kernel']}"
        )
    if "baseline_since" in evidence:
        until = f" to {moment(evidence['baseline_until'])}" if "baseline_until" in evidence else ""
        return f"{evidence['subject']}, baseline {moment(evidence['baseline_since'])}{until}"
    return f"slot {moment(evidence['slot'])}" if "slot" in evidence else ""


def _standing(recommendation: Recommendation, request: ApplyRequest | None, now: float) -> str:
    standing = recommendation.at(now).value
    return f"{standing}, {request.progress.value}" if request else standing


def _details(recommendation: Recommendation) -> Iterator[str]:
    yield recommendation.what
    for name, line in (
        ("Why: ", recommendation.why),
        ("Evidence: ", evidence_text(recommendation.evidence)),
        ("Since ", moment(recommendation.since)),
        ("Note: ", recommendation.note),
    ):
        if line:
            yield f"{name}{line}"
