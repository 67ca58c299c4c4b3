"""The proving ground on a real kernel: each oracle fails a policy that is broken in its way, and passes others.

The whole of the bundled policies goes through it with the verifier's corpus; here stands what anchors each oracle.
"""

from __future__ import annotations

import pytest

from kernel_bpf.build.compile import compile_policy
from kernel_bpf.build.target import prepare_target
from kernel_bpf.policies.library import load_library
from schedagent.core.policies.policy import CandidatePolicy
from schedagent.core.settings import load_settings
from schedagent.run.opening import open_lab
from tests.support.paths import FIXTURES
from verifier.lab.vm import LabPolicy
from verifier.proving import conservation, crowd, groups, mix, shares
from verifier.proving.prove import Depth

pytestmark = [pytest.mark.vm, pytest.mark.timeout(300)]

POLICIES = FIXTURES / "policies"
STARVED = {
    "starvation": 1 << 0,
    "affinity": 1 << 1,
    "migration disabled": 1 << 2,
    "pinned kernel workers": 1 << 3,
    "wake-ups": 1 << 4,
    "yield": 1 << 5,
    "priority changes": 1 << 6,
    "real-time interference": 1 << 7,
    "cgroup moves": 1 << 10,
    "memory pressure": 1 << 8,
    "fork storm": 1 << 9,
}
"""Oracle -> the bit of `fault` in oracle_starver.bpf.c with which it must fail."""

PICKS = {"users beyond two CPUs": 11, "users a while after the load": 12}
"""Whom picks_on.bpf.c has wait: values of its tunable `victims`."""

FIRST_HALF = {"starvation", "migration disabled", "pinned kernel workers", "cgroup moves", "fork storm"}
"""Without memory pressure: its task is starved within its move to its cgroup, with the lock that all moves need."""
SECOND_HALF = set(STARVED) - FIRST_HALF
BESIDES = {"starvation", "migration disabled", "cgroup moves", "fork storm"}
"""May fail with the second half: pinned hogs are under two oracles, and starved tasks that are killed die late; the
kernel tells a policy of migrate_disable() as of a new mask; who waits for a child wakes, too; all cgroups starve."""


@pytest.fixture(scope="module")
def lab():
    return open_lab(load_settings())


@pytest.fixture(scope="module")
def proved(lab):
    """Take a policy through phases; return its exit text and the results by name."""
    target = prepare_target(lab.kernel.vmlinuz, lab.kernel.release, load_settings().cache_dir)

    def run(source, *phases, **tunables):
        name = source.name.removesuffix(".bpf.c")
        policy = LabPolicy(CandidatePolicy(name, tuple(tunables.items())), compile_policy(source, name, target))
        answer = lab.prove(policy, Depth.QUICK, phases)
        return answer.exit_text, {result["name"]: result for result in answer.results}

    return run


def starve(proved, oracles):
    """Starve the tasks of these oracles; return the names of all oracles that then fail."""
    fault = sum({STARVED[name] for name in oracles})
    _exit_text, results = proved(POLICIES / "oracle_starver.bpf.c", "mix", fault=fault)
    assert set(results) <= {info.name for info in mix.ORACLES}
    return {name for name, result in results.items() if not result["ok"]}


def test_oracles_of_the_mix_fail_if_their_tasks_starve(proved):
    assert starve(proved, FIRST_HALF) == FIRST_HALF


def test_the_others_do_so_and_those_pass(proved):
    assert SECOND_HALF <= starve(proved, SECOND_HALF) <= SECOND_HALF | BESIDES


def test_a_lost_task_shows_before_the_policys_own_watchdog(proved):
    exit_text, results = proved(POLICIES / "trouble.bpf.c", "mix", fault=3)
    assert exit_text.startswith("stall: ")
    assert "failed to run for" in exit_text
    assert not results["starvation"]["ok"]
    assert not any(result["ok"] for result in results.values()), "something passed under an ejected policy"


@pytest.mark.parametrize(
    ("name", "phase", "oracle"),
    [
        ("never_steals", "work conservation", conservation.CONSERVATION),
        ("kicks_its_own_cpu", "work conservation", conservation.CONSERVATION),
        ("weight_is_ignored", "shares", shares.WEIGHTS),
        ("sleeper_not_clamped", "shares", shares.RETURN),
        ("one_queue_for_the_pinned_too", "pinned crowd", crowd.PINNED_CROWD),
    ],
)
def test_an_oracle_fails_a_policy_broken_in_its_way(name, phase, oracle, proved):
    exit_text, results = proved(POLICIES / "broken" / f"{name}.bpf.c", phase)
    assert exit_text == ""
    assert not results[oracle.name]["ok"], results


@pytest.mark.parametrize(
    ("victims", "phase"),
    [("users beyond two CPUs", "groups"), ("users a while after the load", "moved clock")],
)
def test_whoever_is_picked_on_is_found(victims, phase, proved):
    """A third of a second is far within the starvation bound; they pick on nobody where nothing is moved."""
    exit_text, results = proved(POLICIES / "picks_on.bpf.c", phase, victims=PICKS[victims], patience_ms=300)
    assert exit_text == ""
    assert not results[phase]["ok"], results


def test_a_good_policy_passes(proved):
    phases = {
        "work conservation": conservation.ORACLES,
        "shares": shares.ORACLES,
        "pinned crowd": crowd.ORACLES,
        "groups": (groups.GROUPS,),
        "moved clock": (groups.MOVED_CLOCK,),
    }
    exit_text, results = proved(load_library()["fair"].source, *phases)
    assert exit_text == ""
    assert all(result["ok"] for result in results.values()), results
    assert set(results) == {info.name for oracles in phases.values() for info in oracles}
