"""Limits of cgroups under the bundled policies, beside the kernel's own: one run of guest_cgroups.py, a test for each.

A host that others use disturbs both: where the default scheduler is off by more than the bound in the same machine,
nothing is said of the policies.
"""

from __future__ import annotations

import pytest

from schedagent.core.settings import load_settings
from tests.support import cgroup_figures
from tests.support.cgroup_figures import DEFAULT, IGNORES, POLICIES, Figures, bound, deviation, keeps
from tests.support.no_verdict import no_verdict

pytestmark = [pytest.mark.vm, pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def figures(tmp_path_factory) -> Figures:
    """By policy and limit."""
    folder = tmp_path_factory.mktemp("objects")
    return cgroup_figures.measure(load_settings(), folder, (*POLICIES, IGNORES))


@pytest.mark.parametrize("limit", cgroup_figures.WANTED)
@pytest.mark.parametrize("policy", POLICIES)
def test_a_limit_holds_as_under_the_default_scheduler(figures, policy, limit):
    assert keeps(policy, limit)
    default, figure = figures[DEFAULT][limit], figures[policy][limit]
    if deviation(limit, figure) > bound(limit) and deviation(limit, default) > bound(limit):
        no_verdict(f"the default scheduler itself is off in the same machine ({limit}: {default})")
    assert deviation(limit, figure) <= bound(limit), (figure, default)


@pytest.mark.parametrize("limit", ["10:1000", "100:200 below", "20 %", "150 %"])
def test_a_policy_that_ignores_limits_shows(figures, limit):
    assert deviation(limit, figures[IGNORES][limit]) > 1.5 * bound(limit)
