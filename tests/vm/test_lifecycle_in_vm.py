"""The phases of a policy's life, on a real kernel: good ones pass, and what they are for is caught.

Overhead, which loads policies too, is in test_gates.py: all bundled ones pass it, and burns_cycles does not.
"""

from __future__ import annotations

import pytest

from kernel_bpf.build.compile import compile_policy
from kernel_bpf.build.target import prepare_target
from kernel_bpf.policies.library import load_library, policy_from_file
from schedagent.core.policies.policy import CandidatePolicy
from schedagent.core.settings import load_settings
from schedagent.run.opening import open_lab
from tests.support.paths import FIXTURES
from verifier.lab.vm import LabPolicy
from verifier.proving.prove import Depth

pytestmark = [pytest.mark.vm, pytest.mark.timeout(600)]

LIFECYCLE = ("reload loop", "CPU hotplug", "provoked stall")


@pytest.fixture(scope="module")
def prove():
    """Take a policy through phases of the proving ground; return the results by oracle."""
    settings = load_settings()
    lab = open_lab(settings)
    target = prepare_target(lab.kernel.vmlinuz, lab.kernel.release, settings.cache_dir)

    def run(policy, *phases):
        artifact = compile_policy(policy.source, policy.name, target, include_dirs=(FIXTURES / "foreign" / "include",))
        candidate = CandidatePolicy(policy.name, policy.configured({}))
        answer = lab.prove(LabPolicy(candidate, artifact), Depth.QUICK, phases)
        return {result["name"]: result for result in answer.results}

    return run


def test_a_good_policy_passes_all_of_them(prove):
    results = prove(load_library()["fifo"], *LIFECYCLE)
    assert set(results) == set(LIFECYCLE)
    assert [result for result in results.values() if not result["ok"]] == []
    assert "asks for a restart (code 0x1000100000000)" in results["CPU hotplug"]["detail"]
    assert "stall: " in results["provoked stall"]["detail"]


@pytest.mark.parametrize("name", ["sx_visitor", "sx_silent"])
def test_policies_from_elsewhere_pass_them_too(prove, name):
    results = prove(policy_from_file(FIXTURES / "foreign" / f"{name}.bpf.c"), *LIFECYCLE)
    assert [result for result in results.values() if not result["ok"]] == []
    assert "stall: " in results["provoked stall"]["detail"], "of sx_silent the kernel's log says why"


def test_a_farewell_that_delays_everybody_is_noticed(prove):
    result = prove(policy_from_file(FIXTURES / "policies" / "long_farewell.bpf.c"), "provoked stall")["provoked stall"]
    assert not result["ok"]
    assert result["measured"] > 2
