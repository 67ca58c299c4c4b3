"""schedagentd on a real sched_ext kernel, with its unit's capabilities: one run of guest_deploy.py, then a test each.

It anchors tests/support/scripted_kernel.py: what that says of links, pins and partial switch is so.
"""

import pytest

from kernel_bpf.build.compile import compile_policy
from kernel_bpf.build.target import prepare_target
from schedagent.core.settings import load_settings
from tests.support.in_guest import ROOT, told_inside
from verifier.microvm.kernels import default_kernel

pytestmark = [pytest.mark.vm, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def seen(tmp_path_factory) -> dict:
    """What guest_deploy.py printed."""
    settings = load_settings()
    kernel = default_kernel(settings)
    target = prepare_target(kernel.vmlinuz, kernel.release, settings.cache_dir)
    path = tmp_path_factory.mktemp("objects") / "trouble.o"
    source = ROOT / "tests" / "fixtures" / "policies" / "trouble.bpf.c"
    path.write_bytes(compile_policy(source, "trouble", target).object_bytes)
    return told_inside(settings.cache_dir, kernel, "guest_deploy.py", path, timeout_s=240)


def test_a_canary_has_the_tasks_of_its_cgroup_only(seen):
    assert seen["before"] == "disabled"
    assert seen["canary"] == {"state": "enabled", "ops": "trouble", "switch_all": False}
    assert seen["inside"] == [7, 7], "the process, and a child that was born later"
    assert set(seen["outside"]) == {0}


def test_what_is_on_probation_ends_with_the_daemon(seen):
    assert seen["killed on probation"] < 2
    assert seen["after that"] == ["schedagentd or the machine died during its probation"]
    assert seen["inside after that"] == 0


def test_what_is_proven_survives_the_daemon_and_is_taken_over(seen):
    assert seen["killed when proven"] == "enabled"
    assert seen["adopted"]
    assert (seen["stopped"], seen["stopped when proven"], seen["adopted again"]) == (0, "enabled", True)


def test_wider_and_full(seen):
    assert seen["outside when wider"] == 7
    assert seen["full"] == {"state": "enabled", "ops": "trouble", "switch_all": True}


def test_an_adopted_policy_still_tells_why_it_ended(seen):
    end, detail, state = seen["sysrq"]
    assert (end, state) == ("exited by itself", "disabled")
    assert "sysrq" in detail
    assert seen["sysrq seen in"] < 4
    assert "ended by the circuit breaker before" in seen["again"]


def test_a_stall_in_a_canary_trips_it(seen):
    end, said, state = seen["stall"]
    assert (end, state) == ("stall", "disabled")
    assert "failed to run for" in said


def test_nothing_is_left(seen):
    assert seen["rolled back"] == "the default scheduler"
    assert seen["at the end"] == ["disabled", 0, 0]
    assert seen["ended"] == 0


def test_it_stays_small_with_a_policy_loaded(seen):
    assert seen["rss_kib"] < 45 * 1024
