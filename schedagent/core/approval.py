"""Approvals: what a run shows to a person before it continues, and what that person decided.

A decision is for exactly what was shown: it is stored under the digest of that, and counts for nothing else.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property
from typing import Any


class ApprovalStage(StrEnum):
    """Before which step a run asks."""

    PLAN = "plan"
    """Before the candidates of a plan are verified and measured."""
    DEPLOY = "deploy"
    """Before the token of the winner is issued."""


@dataclass(frozen=True)
class ApprovalRequest:
    """What a run shows and waits for.

    Args:
        stage, iteration: before which step of it.
        shown: everything that is shown, as JSON values; the run's id is in it.
    """

    stage: ApprovalStage
    iteration: int
    shown: Mapping[str, Any]

    @cached_property
    def digest(self) -> str:
        """Hex SHA-256 over stage, iteration and all that is shown, as canonical JSON."""
        content = [self.stage.value, self.iteration, self.shown]
        text = json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False)
        return hashlib.sha256(text.encode("ascii")).hexdigest()


@dataclass(frozen=True)
class Decision:
    """What a person decided.

    Args:
        approved: yes or no.
        by: name of the user whose process decided.
        at: ISO 8601 UTC time.
        because: why; never empty for a rejection.
    """

    approved: bool
    by: str
    at: str
    because: str = ""

    @property
    def in_words(self) -> str:
        """In words, such as "rejected by ada: the slice is too long"."""
        verb = "approved" if self.approved else "rejected"
        return f"{verb} by {self.by}" + (f": {self.because}" if self.because else "")
