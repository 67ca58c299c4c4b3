"""schedagentd on a real sched_ext kernel, with its unit's capabilities: one run of guest_deploy.py, then a test each.

It anchors tests/support/scripted_kernel.py: what that says of links, pins and partial switch is so.
"""

import pytest

from schedagent.core.settings import load_settings
from tests.support.in_guest import guest_objects, told_inside
from verifier.microvm.kernels import default_kernel

pytestmark = [pytest.mark.vm, pytest.mark.timeout(600)]

LATE_S, EMULATED_S = 0.5, 2.5
"""What no window may be longer by; and how long an emulated machine may be stopped by its host meanwhile."""


@pytest.fixture(scope="module")
def seen(tmp_path_factory) -> dict:
    """What guest_deploy.py printed."""
    settings = load_settings()
    kernel = default_kernel(settings)
    objects = guest_objects(settings, kernel, tmp_path_factory.mktemp("objects"))
    return told_inside(settings.cache_dir, kernel, "guest_deploy.py", *objects, timeout_s=240)


def test_a_canary_has_the_tasks_of_its_cgroup_only_and_owns_its_cpus(seen):
    canary = seen["canary"]
    assert canary["before"] == "disabled"
    assert "does not own its CPUs" in canary["refused"]
    assert canary["canary"] == {"state": "enabled", "ops": "starve", "switch_all": False}
    assert canary["inside"] == [7, 7], "the process, and a child that was born later"
    assert set(canary["outside"]) == {0}


def test_what_is_on_probation_ends_with_the_daemon(seen):
    assert seen["canary"]["killed"] < 2
    assert seen["canary"]["end"] == "schedagentd or the machine died during its probation"
    assert seen["canary"]["inside after that"] == 0


def test_in_a_pulse_the_scope_gets_what_a_full_switch_gives(seen):
    """Half of what there is, where a canary by partial switch got a twentieth: what the others left."""
    pulses = seen["pulses"]
    assert pulses["default"] == pytest.approx(0.5, abs=0.1)
    assert pulses["full switch"] == pytest.approx(0.5, abs=0.12)
    assert pulses["windows"]["pulses"] == pytest.approx(pulses["full switch"], abs=0.12)
    assert pulses["windows"]["rests"] == pytest.approx(pulses["default"], abs=0.1)


def test_no_pulse_is_longer_than_it_was_to_be(seen):
    windows = seen["pulses"]["windows"]
    assert windows["count"] >= 6
    assert windows["median_late_s"] < LATE_S
    assert windows["late_s"][-1] < LATE_S + EMULATED_S


def test_a_trial_is_in_charge_of_everybody_and_ends_with_its_client(seen):
    assert seen["pulses"]["trial"] == {"state": "enabled", "ops": "starve", "switch_all": True}
    assert seen["pulses"]["after the trial"] == ["disabled", "its time is over", "its client is done"]


def test_what_is_proven_survives_the_daemon_and_is_taken_over(seen):
    pulses = seen["pulses"]
    assert pulses["full"] == {"state": "enabled", "ops": "starve", "switch_all": True}
    assert pulses["killed when proven"] == "enabled"
    assert pulses["adopted"]
    assert (pulses["stopped"], pulses["stopped when proven"], pulses["adopted again"]) == (0, "enabled", True)


def test_an_adopted_policy_still_tells_why_it_ended(seen):
    end, detail, state = seen["ends"]["sysrq"]
    assert (end, state) == ("exited by itself", "disabled")
    assert "sysrq" in detail
    assert seen["ends"]["sysrq seen in"] < 4
    assert "ended by the circuit breaker before" in seen["ends"]["again"]


def test_a_stall_in_a_trial_trips_it(seen):
    end, words, state = seen["stall"]
    assert (end, state) == ("stall", "disabled")
    assert "failed to run for" in words


@pytest.mark.parametrize("way", ["in a pulse", "client", "both", "schedagentd"])
def test_the_default_is_back_two_seconds_after_kill_9(seen, way):
    assert seen["killed"][way] < 2


def test_nothing_is_left(seen):
    assert seen["left"]["rolled back"] == "the default scheduler"
    assert seen["left"]["at the end"] == ["disabled", 0]
    assert seen["ended"] == 0


def test_it_stays_small_with_a_policy_loaded(seen):
    assert seen["pulses"]["rss_kib"] < 45 * 1024
