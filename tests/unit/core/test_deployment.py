"""The words of a deployment: what each stage contains, and what each end means. Every member is named here."""

from __future__ import annotations

import pytest

from schedagent.core.deployment import End, Stage

TRIP, BLAME = "is_trip", "blames_policy"

MEANING = {
    End.STALL: {TRIP, BLAME},
    End.EJECTED: {TRIP, BLAME},
    End.EXITED: {TRIP, BLAME},
    End.ERROR_EVENTS: {TRIP, BLAME},
    End.REJECTED_TASKS: {TRIP, BLAME},
    End.STARVATION: {TRIP, BLAME},
    End.RUN_QUEUE_DELAY: {TRIP, BLAME},
    End.PRESSURE: {TRIP, BLAME},
    End.CPU_SHARE: {TRIP, BLAME},
    End.METRIC: {TRIP, BLAME},
    End.LEASE_LAPSED: {TRIP},
    End.SUSPENDED: {TRIP},
    End.HOTPLUG: {TRIP},
    End.CORE_SCHEDULING: {TRIP},
    End.FOREIGN: {TRIP},
    End.CORE_SCHEDULING: {TRIP},
    End.BLIND: {TRIP},
    End.ROLLED_BACK: set(),
    End.REPLACED: set(),
    End.GONE: set(),
    End.STOPPED: set(),
    End.DIED: set(),
    End.DIED_ON_PROBATION: {TRIP, BLAME},
    End.NOT_LOADED: {BLAME},
}


def test_every_end_has_a_meaning():
    """Whoever adds an end decides what it means: no place among the others decides it for them."""
    assert set(MEANING) == set(End)


@pytest.mark.parametrize("end", End, ids=lambda end: end.name)
def test_an_end_is_in_exactly_its_groups(end):
    assert {name for name in (TRIP, BLAME) if getattr(end, name)} == MEANING[end]


@pytest.mark.parametrize(
    ("stage", "smaller"),
    [(Stage.CANARY, set()), (Stage.WIDER, {Stage.CANARY}), (Stage.FULL, {Stage.CANARY, Stage.WIDER})],
)
def test_a_stage_is_beyond_the_smaller_ones_only(stage, smaller):
    assert {other for other in Stage if stage.is_beyond(other)} == smaller


def test_every_stage_knows_the_smaller_ones():
    assert all(isinstance(stage.is_beyond(other), bool) for stage in Stage for other in Stage)
