"""What one oracle measured. Shared by both sides of the machine: standard library only."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


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
