"""The words of a deployment: what each stage contains, and what each end means. Every member is named here."""

from __future__ import annotations

import pytest

from schedagent.core.deployment import End, Stage
from schedagent.core.token import Scope

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
    End.HELD: {TRIP},
    End.BLIND: {TRIP},
    End.ROLLED_BACK: set(),
    End.REPLACED: set(),
    End.GONE: set(),
    End.STOPPED: set(),
    End.DIED: set(),
    End.DIED_ON_PROBATION: {TRIP, BLAME},
    End.NOT_LOADED: {BLAME},
    End.NOT_SHOWN: {BLAME},
    End.NO_GAIN: {BLAME},
    End.OVER: set(),
}


def test_every_end_has_a_meaning():
    """Whoever adds an end decides what it means: no place among the others decides it for them."""
    assert set(MEANING) == set(End)


@pytest.mark.parametrize("end", End, ids=lambda end: end.name)
def test_an_end_is_in_exactly_its_groups(end):
    assert {name for name in (TRIP, BLAME) if getattr(end, name)} == MEANING[end]


def test_only_a_canary_needs_no_token_for_the_whole_machine():
    assert {stage for stage in Stage if stage.scope is Scope.PARTIAL} == {Stage.CANARY}
    assert {stage for stage in Stage if stage.is_timed} == {Stage.TRIAL, Stage.PULSE}
