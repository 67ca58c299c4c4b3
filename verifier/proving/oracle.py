"""What one oracle demands, and what it measured. Shared by both sides of the machine."""

from __future__ import annotations

from dataclasses import dataclass, replace

from schedagent.core.verification import OracleResult

__all__ = ["OracleInfo", "OracleResult", "Undecided"]


@dataclass(frozen=True)
class Undecided:
    """An oracle that measured too little to hold or to fail: no result, so that nobody takes it for one.

    Args:
        name: of the oracle.
        reason: what is missing, with figures.
    """

    name: str
    reason: str


@dataclass(frozen=True)
class OracleInfo:
    """An oracle as the report and the docs show it: it holds if what it measures is at most its bound.

    Args:
        name: as in the `checks` of core.rules.RULES.
        rule: number of the rule that it checks.
        bound, unit: what its figure is compared with.
        measures: what the figure is.
        reason: why this bound, and what the oracle cannot see: whole sentences.
    """

    name: str
    rule: int
    bound: float
    unit: str
    measures: str
    reason: str

    def stretched(self, stretch: float) -> OracleInfo:
        """The same oracle with a bound that is so many times as wide."""
        return replace(self, bound=self.bound * stretch)

    def judge(self, measured: float, detail: str) -> OracleResult:
        """Compare a figure with the bound."""
        return self._result(measured, detail, ok=measured <= self.bound)

    def fail(self, measured: float, detail: str) -> OracleResult:
        """Fail the oracle whatever the figure, which is how far it got."""
        return self._result(measured, detail, ok=False)

    def _result(self, measured: float, detail: str, *, ok: bool) -> OracleResult:
        return OracleResult(self.name, self.rule, ok, round(measured, 4), self.bound, self.unit, detail)
