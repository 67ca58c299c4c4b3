"""Limits of this machine's cgroups keep out a policy that would end them, unless somebody accepts that."""

from __future__ import annotations

import pytest

from schedagent.core.errors import Refused
from schedagent.core.policies import policy
from schedagent.schedagentd import limits
from schedagent.schedagentd.limits import CGROUP_LIMITS, CGROUP_WEIGHTS, CgroupLimit, cgroup_limits, check_limits

MAX = CgroupLimit("/a", "cpu.max", "20000 100000")
WEIGHT = CgroupLimit("/a/b", "cpu.weight", "10")


def make(folder, **files):
    folder.mkdir()
    for name, value in files.items():
        (folder / name.replace("_", ".")).write_text(f"{value}\n")
    return folder


@pytest.fixture
def root(tmp_path):
    return make(tmp_path / "cgroup", cpu_weight=7)


def test_the_words_are_those_of_the_rule():
    assert (CGROUP_WEIGHTS, CGROUP_LIMITS) == (policy.CGROUP_WEIGHTS, policy.CGROUP_LIMITS)


def test_only_what_differs_from_the_default_is_a_limit(root):
    make(root / "plain", cpu_max="max 100000", cpu_weight=100, cpu_idle=0)
    outer = make(root / "a", cpu_max="20000 100000", cpu_weight=100, cpu_idle=0)
    make(outer / "b", cpu_max="max 50000", cpu_weight=10, cpu_idle=1)
    make(root / "without the controller")
    assert cgroup_limits(root) == (MAX, WEIGHT, CgroupLimit("/a/b", "cpu.idle", "1"))


def test_a_policy_is_refused_for_what_it_does_not_keep():
    with pytest.raises(Refused, match=r'"/a" would lose cpu\.max "20000 100000"') as refused:
        check_limits((MAX, WEIGHT), {CGROUP_LIMITS})
    assert "cpu.weight" not in refused.value.message
    assert "--accept cgroup-limits" in refused.value.hint


def test_a_policy_that_keeps_what_is_set_is_taken():
    check_limits((MAX,), {CGROUP_WEIGHTS, "weights"})
    check_limits((MAX, WEIGHT), ())
    check_limits((), {CGROUP_WEIGHTS, CGROUP_LIMITS})


def test_few_are_named_and_the_rest_is_counted():
    with pytest.raises(Refused, match="; and 3 more"):
        check_limits([MAX] * (limits.MOST_NAMED + 3), {CGROUP_LIMITS})


def test_names_are_foreign_text():
    evil = CgroupLimit("/a\x1b[2J", "cpu.max", "1\x1b[2J 2")
    with pytest.raises(Refused) as refused:
        check_limits([evil], {CGROUP_LIMITS})
    assert "\x1b" not in refused.value.message


def test_a_machine_that_is_too_large_to_look_at_is_not_taken_for_one_without_limits(root, monkeypatch):
    monkeypatch.setattr(limits, "MOST_CGROUPS", 3)
    for number in range(3):
        make(root / f"g{number}")
    assert cgroup_limits(root) == ()
    make(root / "g3")
    with pytest.raises(Refused, match="more than 3 cgroups"):
        cgroup_limits(root)


def test_cgroups_too_deep_to_look_at_are_not_taken_for_ones_without_limits(root, monkeypatch):
    monkeypatch.setattr(limits, "MOST_DEPTH", 2)
    inner = make(make(root / "a") / "b")
    with pytest.raises(Refused, match="more than 2 deep"):
        cgroup_limits(root)
    inner.rmdir()


def test_no_cgroups_are_no_limits(tmp_path):
    assert cgroup_limits(tmp_path / "nowhere") == ()
