"""What a run of mutants showed: the table, the kill rate, the survivors."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tests.mutation.judge import Verdict
from tests.mutation.mutants import Mutant


@dataclass(frozen=True)
class Judged:
    """A mutant and what became of it."""

    mutant: Mutant
    verdict: Verdict

    def to_json(self) -> dict[str, Any]:
        mutant = self.mutant
        fields = ("policy", "operator", "place", "function", "what", "diff")
        return {name: getattr(mutant, name) for name in fields} | {"verdict": self.verdict.to_json()}


def kill_rate(judged: Sequence[Judged]) -> float:
    """Killed mutants per mutant, 0 to 1; 1 for none."""
    return sum(one.verdict.killed for one in judged) / len(judged) if judged else 1.0


def to_json(judged: Sequence[Judged]) -> dict[str, Any]:
    """Everything, for machines."""
    return {
        "mutants": len(judged),
        "kill_rate": round(kill_rate(judged), 4),
        "judged": [one.to_json() for one in judged],
    }


def table(judged: Sequence[Judged]) -> str:
    """One line per operator: how many mutants, how many survived, and which gate killed the others."""
    rows: defaultdict[str, list[Judged]] = defaultdict(list)
    for one in judged:
        rows[one.mutant.operator].append(one)
    lines = [f"{'operator':<18} mutants survived  killed at"]
    for operator in sorted(rows):
        gates = Counter(one.verdict.gate for one in rows[operator])
        survived = gates.pop("", 0)
        where = ", ".join(f"{gate} {count}" for gate, count in gates.most_common())
        lines.append(f"{operator:<18} {len(rows[operator]):7} {survived:8}  {where}")
    killed = sum(one.verdict.killed for one in judged)
    lines.append(f"kill rate {kill_rate(judged):.1%}: {killed} of {len(judged)}")
    return "\n".join(lines)


def survivors(judged: Sequence[Judged]) -> str:
    """Each mutant that passed, with its diff."""
    parts = []
    for one in judged:
        if not one.verdict.killed:
            mutant = one.mutant
            inside = f" in {mutant.function}" if mutant.function else ""
            parts.append(f"{mutant.policy}: {mutant.operator} at {mutant.place}{inside}: {mutant.what}\n{mutant.diff}")
    return "\n\n".join(parts)
