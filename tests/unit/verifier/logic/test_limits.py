"""Rule 31: what a policy is not told of cgroups, and that only where the kernel would tell it."""

from __future__ import annotations

import pytest

from schedagent.core.policies.policy import CGROUP_LIMITS, CGROUP_WEIGHTS, Standing
from schedagent.core.verification import Severity
from tests.support.small_policy import compiled
from verifier import classes
from verifier.logic.checks import check_logic
from verifier.logic.rules.limits import CALLBACKS

TOLD = frozenset(f"sched_ext_ops.{member}" for member in CALLBACKS)


@pytest.fixture(scope="module")
def image(tmp_path_factory):
    return compiled(tmp_path_factory.mktemp("small"))


def noted(image, features, standing=Standing.DERIVED):
    report = check_logic(image, features, standing=standing)
    return [finding for finding in report.findings if finding.rule == 31]


def test_a_policy_without_the_callbacks_needs_a_word_for_each_kind(image):
    findings = noted(image, TOLD)
    assert [finding.word for finding in findings] == [CGROUP_WEIGHTS, CGROUP_LIMITS]
    assert {finding.severity for finding in findings} == {Severity.NOTE}
    assert "cpu.weight and cpu.idle" in findings[0].message


def test_what_it_declares_it_need_not_keep(image):
    settled = classes.settled(noted(image, TOLD), Standing.DERIVED, (CGROUP_WEIGHTS,))
    assert {finding.accepted_as for finding in settled} == {CGROUP_WEIGHTS, CGROUP_LIMITS}


def test_a_kernel_that_tells_nobody_is_not_the_policys_fault(image):
    assert noted(image, TOLD - {"sched_ext_ops.cgroup_set_bandwidth"}) == noted(image, TOLD)[:1]
    assert noted(image, frozenset()) == []


def test_our_own_policies_say_it_in_their_manifests(image):
    assert noted(image, TOLD, Standing.BUNDLED) == []
