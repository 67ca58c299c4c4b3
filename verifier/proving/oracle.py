"""What one oracle demands, and what it measured. Shared by both sides of the machine: standard library only."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class OracleInfo:
    """What one oracle demands, for the report and the docs.

    Args:
        name: as in the `checks` of core.rules.RULES.
        rule: number of the rule that it checks.
        bound, unit: what its figure is compared with.
        reason: why this bound: whole sentences.
    """

    name: str
    rule: int
    bound: float
    unit: str
    reason: str


@dataclass(frozen=True)
class OracleResult:
    """One oracle of the proving ground.

    Args:
        name: as in the `checks` of core.rules.RULES, for example "work conservation".
        rule: number of the rule that is broken if it does not hold.
        ok: whether it holds.
        measured, bound: the figure and what it is compared with.
        unit: of both: "s", "ratio", "tasks".
        detail: one sentence with the other figures, for people.
    """

    name: str
    rule: int
    ok: bool
    measured: float
    bound: float
    unit: str
    detail: str

    def to_json(self) -> dict[str, Any]:
        return asdict(self)
