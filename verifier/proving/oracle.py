"""What one oracle demands, and what it measured. Shared by both sides of the machine."""

from __future__ import annotations

from dataclasses import dataclass

from schedagent.core.verification import OracleResult

__all__ = ["OracleInfo", "OracleResult"]


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
