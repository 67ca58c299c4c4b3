"""What one oracle promises, and what it measured. Shared by both sides of the machine: standard library only."""

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


@dataclass(frozen=True)
class OracleInfo:
    """An oracle as the documentation shows it: it holds if what it measures is at most its bound.

    Args:
        name, rule, bound, unit: as in OracleResult.
        measures: what the figure is.
        reason: why the bound is what it is, and what the oracle cannot see.
    """

    name: str
    rule: int
    bound: float
    unit: str
    measures: str
    reason: str

    def judge(self, measured: float, detail: str) -> OracleResult:
        """Compare a figure with the bound."""
        return self._result(measured, detail, ok=measured <= self.bound)

    def fail(self, measured: float, detail: str) -> OracleResult:
        """It does not hold whatever the figure says, which is how far it got."""
        return self._result(measured, detail, ok=False)

    def _result(self, measured: float, detail: str, *, ok: bool) -> OracleResult:
        return OracleResult(self.name, self.rule, ok, round(measured, 4), self.bound, self.unit, detail)
