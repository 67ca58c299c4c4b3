"""The lab when things go wrong: a lost machine is replaced once, a policy that fails is told from one."""

from __future__ import annotations

import logging
import os
import signal
import threading

import pytest

from kernel_bpf.build.compile import compile_policy
from kernel_bpf.build.target import prepare_target
from schedagent.core.errors import VmLost, WorkloadFailed
from schedagent.core.policies.policy import CandidatePolicy
from schedagent.core.settings import load_settings
from schedagent.core.trials.workload import WorkloadCommand
from schedagent.run.opening import open_lab
from tests.support.paths import FIXTURES
from verifier.lab.vm import LabPolicy

pytestmark = [pytest.mark.vm, pytest.mark.timeout(300)]

POLICIES = FIXTURES / "policies"
RETRIED = "VM lost, trying once more"
FAULT_LOSE = 3


@pytest.fixture(scope="module")
def lab():
    return open_lab(load_settings())


@pytest.fixture(scope="module")
def trouble(lab):
    target = prepare_target(lab.kernel.vmlinuz, lab.kernel.release, load_settings().cache_dir)
    return compile_policy(POLICIES / "trouble.bpf.c", "trouble", target)


def with_fault(trouble, fault):
    return LabPolicy(CandidatePolicy("trouble", (("fault", fault),)), trouble)


def test_a_machine_lost_during_a_run_is_replaced_once(lab, caplog):
    with caplog.at_level(logging.WARNING), lab.session(WorkloadCommand("sleep 2; echo done", "/")) as session:
        session.run_default()
        first = session._machine.pid
        threading.Timer(1.0, os.kill, (first, signal.SIGKILL)).start()
        sample = session.run_default()
        assert session._machine.pid != first
    assert (sample.exit_status, sample.output_tail) == (0, "done\n")
    assert len([record for record in caplog.records if RETRIED in record.message]) == 1


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may crash its guest")
def test_a_workload_that_crashes_every_guest_is_no_verdict(lab, caplog):
    with caplog.at_level(logging.WARNING), lab.session(WorkloadCommand("echo c > /proc/sysrq-trigger", "/")) as session:
        with pytest.raises(VmLost) as lost:
            session.run_default()
        assert session._machine is None
    assert "Kernel panic" in lost.value.hint
    assert len([record for record in caplog.records if RETRIED in record.message]) == 1


def test_a_policy_ejected_in_the_middle_of_a_run_is_told(lab, trouble):
    hogs = "for i in 1 2 3 4; do timeout 3 sh -c 'while :; do :; done' & done; wait"
    with lab.session(WorkloadCommand(hogs, "/")) as session:
        sample = session.run_candidate(with_fault(trouble, FAULT_LOSE))
        assert sample.policy_exit.startswith("stall: ")
        assert "failed to run for" in sample.policy_exit
        assert sample.failure.startswith("the kernel ejected the policy: stall")
        assert session.run_default().failure == ""
    assert sample.exit_status is None


def test_a_failing_workload_is_told_with_its_output(lab):
    reason = pytest.raises(WorkloadFailed, match="exit status 9")
    with lab.session(WorkloadCommand("echo the reason; exit 9", "/")) as session, reason as failed:
        session.warm_up()
    assert "the reason" in failed.value.message
