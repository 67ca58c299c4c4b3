"""How the figures of the cgroups' phase are judged, without a machine."""

from __future__ import annotations

import pytest

from verifier.proving import limits
from verifier.proving.oracle import Undecided

EXACT = {limits.LIGHT: 0.09, limits.HEAVY: 0.9, limits.INNER_LIGHT: 0.08, limits.INNER_HEAVY: 0.8}


def test_exact_shares_hold():
    assert limits.judge_weights(EXACT).ok


@pytest.mark.parametrize("name", [limits.HEAVY, limits.INNER_HEAVY])
def test_equal_shares_fail_on_either_level(name):
    assert limits.judge_weights(EXACT | {name: 0.09}).ok is False


def test_nothing_at_all_fails():
    assert limits.judge_weights(EXACT | {limits.LIGHT: 0.0}).ok is False


def test_what_is_off_by_a_third_is_not_decided():
    assert isinstance(limits.judge_weights(EXACT | {limits.HEAVY: 1.2}), Undecided)


@pytest.mark.parametrize(
    ("fifth", "half", "ok"),
    [
        (0.2, 0.5, True),
        (0.21, 0.46, True),
        (0.23, 0.5, False),
        (0.2, 0.6, False),
        (0.95, 0.95, False),
        (0.0, 0.5, False),
    ],
)
def test_quotas_are_kept_or_not(fifth, half, ok):
    assert limits.judge_limits(dict(zip(limits.QUOTAS, (fifth, half), strict=True))).ok is ok


def test_a_quota_that_is_not_used_up_is_not_decided():
    assert isinstance(limits.judge_limits(dict(zip(limits.QUOTAS, (0.15, 0.5), strict=True))), Undecided)
