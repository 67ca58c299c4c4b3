"""Arms: the ways to schedule that a trial compares: the default, a policy, or a knob that every kernel has."""

from __future__ import annotations

from schedagent.core.trials.trial import DEFAULT_ARM

KNOB_PREFIX = "knob:"
"""Begins the key of a knob's arm; keys of candidates are hex digits."""


def is_candidate(arm: str) -> bool:
    """Whether an arm is a policy about which a claim may be made."""
    return arm != DEFAULT_ARM and not arm.startswith(KNOB_PREFIX)
