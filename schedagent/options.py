"""What bounds a run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from schedagent.core.judge import TrialRules


@dataclass(frozen=True)
class RunOptions:
    """What bounds a run; stored with it, so that `resume` keeps to it.

    Args:
        iterations: most plans to try.
        budget_s: time after which no new run of the workload begins; counted anew after a resume.
        candidates: most candidates per plan.
        rules: when a trial may end.
    """

    iterations: int
    budget_s: float
    candidates: int
    rules: TrialRules

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> RunOptions:
        """Read the options a run was started with."""
        return cls(**{**stored, "rules": TrialRules(**stored["rules"])})
