"""Plans, what came of them, and the limits, as text of 80 columns and as JSON values."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from textwrap import fill
from typing import Any

from schedagent.core.retention.folder import Entry
from schedagent.core.retention.limits import RETENTION
from schedagent.retention.plan import UNITS_S, Plan
from schedagent.retention.prune import Pruned

_WIDTH = 79
_KB = 1000
_TWO_DIGITS = 9.95


def size(count: int) -> str:
    """Return a number of bytes as people read it: 512 B, 4.1 kB, 39 MB."""
    value, unit = float(count), "B"
    for larger in ("kB", "MB", "GB"):
        if value >= _KB - 0.5:
            value, unit = value / _KB, larger
    return f"{value:.1f} {unit}" if unit != "B" and value < _TWO_DIGITS else f"{value:.0f} {unit}"


def age(seconds: float) -> str:
    """Return an age in days, or in hours if it is no whole number of days."""
    unit, name = ("d", "day") if seconds % UNITS_S["d"] == 0 else ("h", "hour")
    number = round(seconds / UNITS_S[unit])
    return f"{number:,} {name}" + ("" if number == 1 else "s")


def plan_text(plan: Plan, pruned: Pruned | None) -> str:
    """Return what goes, or went, one line for each kind, and what stays.

    Args:
        pruned: what came of it; None if it was not carried out.
    """
    return "\n".join((*_what_goes(plan, pruned), *_what_stays(plan), *(_what_came(plan, pruned) if pruned else ())))


def _what_goes(plan: Plan, pruned: Pruned | None) -> Iterator[str]:
    older = age(plan.question.older_than_s)
    if not plan.count:
        yield f"Nothing to remove: all is younger than {older}, in use, or needed."
        return
    verb = "Removed" if pruned else "Would remove"
    yield f"{verb}, older than {older} or beyond a limit, and needed by nothing:"
    yield f"{'count':>7}  {'size':>7}  {'oldest':<10}  what"
    for kind, entries in plan.kinds.items():
        yield _line(len(entries), sum(entry.bytes for entry in entries), _oldest(entries)[:10], RETENTION[kind].what)
    yield _line(plan.count, plan.bytes, "", "in all")


def _line(count: int, taken: int, oldest: str, what: str) -> str:
    return f"{count:>7,}  {size(taken):>7}  {oldest:<10}  {what}"


def _what_stays(plan: Plan) -> Iterator[str]:
    reasons = Counter(plan.stays.values())
    if reasons:
        listed = "; ".join(f"{count:,} {why}" for why, count in reasons.items())
        yield fill(f"Old runs that stay: {listed}.", _WIDTH)
    if plan.question.deployed is None:
        yield fill("schedagentd's record cannot be read here, so every run with a winner stays.", _WIDTH)


def _what_came(plan: Plan, pruned: Pruned) -> Iterator[str]:
    left = plan.count - sum(pruned.removed.values())
    if left:
        yield f"{left:,} of these stayed: they are in use, or needed by now."
    before, after = pruned.repository_bytes
    if pruned.space_kept:
        yield fill(f"The repository's file is as large as before: {pruned.space_kept}.", _WIDTH)
    elif after < before:
        yield f"The repository shrank from {size(before)} to {size(after)}."


def plan_json(plan: Plan, pruned: Pruned | None) -> dict[str, Any]:
    """Return the same as JSON values, with the name of everything."""
    return {
        "older_than_s": plan.question.older_than_s,
        "dry_run": pruned is None,
        "count": plan.count,
        "bytes": plan.bytes,
        "kinds": {
            kind: {
                "count": len(entries),
                "bytes": sum(entry.bytes for entry in entries),
                "oldest": _oldest(entries),
                "names": [entry.name for entry in entries],
            }
            for kind, entries in plan.kinds.items()
        },
        "runs_that_stay": {run_id: why.name.lower() for run_id, why in sorted(plan.stays.items())},
        "deployments_known": plan.question.deployed is not None,
        "removed": pruned and dict(pruned.removed),
        "repository_bytes": pruned and dict(zip(("before", "after"), pruned.repository_bytes, strict=True)),
    }


def limits_text() -> str:
    """Return the limit of everything that grows, a paragraph each."""
    paragraphs = []
    for limit in RETENTION.values():
        stays = f"; stays: {limit.stays}" if limit.stays else ""
        text = f"{limit.text}, by {limit.keeper}{stays} ({limit.place})"
        paragraphs.append(f"{limit.what}:\n{fill(text, _WIDTH, initial_indent='  ', subsequent_indent='  ')}")
    return "\n".join(paragraphs)


def _oldest(entries: Sequence[Entry]) -> str:
    return datetime.fromtimestamp(min(entry.used_at for entry in entries), UTC).isoformat(timespec="seconds")
