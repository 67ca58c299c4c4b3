"""The lab without a VM: what a run's answer becomes, and what happens when the machine is lost."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from dataclasses import asdict, replace

import pytest

from schedagent.core.errors import KernelRejected, MetricError, VmLost, WorkloadFailed
from schedagent.core.policies.artifact import PolicyArtifact
from schedagent.core.policies.policy import CandidatePolicy
from schedagent.core.process.shell_text import quoted
from schedagent.core.trials import metric as metric_reading
from schedagent.core.trials.objective import Direction, Guard, Metric
from schedagent.core.trials.trial import DEFAULT_ARM
from schedagent.core.trials.workload import Goal, Observation, WorkloadCommand
from verifier.lab.vm import LabPolicy, TrialSession, twice
from verifier.microvm import jobs

WORKLOAD = WorkloadCommand("make -j", "/src")
MEASURED = replace(WORKLOAD, goal=Goal.LATENCY, metric=r"p99: (\d+)")
POLICY = LabPolicy(CandidatePolicy("fifo"), PolicyArtifact("fifo", b"elf", "source", "btf"))
ANSWER = jobs.RunAnswer(
    wall_ns=2_500_000_000,
    cpu_ns=4_000_000_000,
    exit_status=0,
    prepare_status=0,
    calibration_ns=1000,
    output="building\np99: 12\n",
    policy_exit="",
    observation=None,
)


class Machine:
    """Answers each job from a list of answers and errors; notes what it was asked."""

    def __init__(self, lab: Lab) -> None:
        self._lab = lab

    def call(self, job, _timeout_s):
        self._lab.asked.append(job)
        answer = self._lab.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return asdict(answer)

    def close(self) -> None:
        self._lab.closed += 1


class Lab:
    environment: dict[str, str] = {"PATH": "/bin"}  # noqa: RUF012

    def __init__(self, *answers: object) -> None:
        self.answers = list(answers)
        self.asked: list[object] = []
        self.opened = self.closed = 0

    def open(self, *, hostfs: bool) -> Machine:
        assert hostfs
        self.opened += 1
        return Machine(self)


class TestTwice:
    def attempts(self, *outcomes: object) -> Callable[[], object]:
        waiting = list(outcomes)

        def attempt() -> object:
            outcome = waiting.pop(0)
            if isinstance(outcome, Exception):
                raise outcome
            return outcome

        return attempt

    def test_a_lost_vm_is_tried_once_more(self, caplog):
        with caplog.at_level(logging.WARNING):
            assert twice(self.attempts(VmLost("hung"), "answer")) == "answer"
        assert "hung" in caplog.text

    def test_two_lost_vms_are_enough(self):
        with pytest.raises(VmLost, match="second"):
            twice(self.attempts(VmLost("first"), VmLost("second"), "answer"))

    def test_nothing_else_is_tried_again(self):
        with pytest.raises(KernelRejected):
            twice(self.attempts(KernelRejected("no"), "answer"))


def test_a_run_under_the_default():
    lab = Lab(ANSWER)
    sample = TrialSession(lab, WORKLOAD).run_default()
    assert (sample.arm, sample.value, sample.failure) == (DEFAULT_ARM, 2.5, "")
    assert (sample.wall_ns, sample.calibration_ns) == (2_500_000_000, 1000)
    [job] = lab.asked
    assert (job.command, job.directory, job.policy, job.observe) == ("make -j", "/src", None, False)


NAMED = replace(
    MEASURED,
    objective="p99",
    metrics=(Metric("steps", r"(\d+) steps", Direction.HIGHER),),
    guards=(Guard(Metric("rps", r"rps: ([\d.]+)", Direction.HIGHER), 0.05),),
)
NAMED_OUTPUT = "3 steps\nrps: 1.5k\np99: 12\n"


def test_every_named_number_stands_in_the_sample():
    sample = TrialSession(Lab(replace(ANSWER, output=NAMED_OUTPUT)), NAMED).run_default()
    assert (sample.value, dict(sample.values)) == (12, {"p99": 12, "steps": 3, "rps": 1500})
    assert TrialSession(Lab(ANSWER), MEASURED).run_default().values == {}


def test_what_the_default_did_not_print_is_an_error_and_of_a_candidate_it_is_nan():
    with pytest.raises(MetricError, match=r"--metric steps '.*' matched nothing in .* output\n    building"):
        TrialSession(Lab(ANSWER), NAMED).run_default()
    sample = TrialSession(Lab(ANSWER), NAMED).run_candidate(POLICY)
    assert (sample.value, sample.failure) == (12, "")
    assert sample.values["p99"] == 12
    assert math.isnan(sample.values["rps"])
    assert math.isnan(sample.values["steps"])


def test_a_unit_that_changes_between_the_runs_of_a_session_is_refused():
    session = TrialSession(Lab(replace(ANSWER, output="p99: 12 ms"), replace(ANSWER, output="p99: 12")), MEASURED)
    assert session.run_default().value == 0.012
    with pytest.raises(MetricError, match=r"was seconds in one place \(`p99: 12 ms`\) and a count in .* \(`p99: 12`\)"):
        session.run_candidate(POLICY)


@pytest.mark.parametrize("run", [lambda session: session.run_default(), lambda session: session.run_candidate(POLICY)])
def test_an_expression_that_backtracks_is_stopped_in_either_arm(run, monkeypatch):
    monkeypatch.setattr(metric_reading, "LIMIT_S", 0.05)
    session = TrialSession(Lab(replace(ANSWER, output="a" * 60 + "b")), replace(MEASURED, metric="(a|a)+$"))
    with pytest.raises(MetricError, match=r"'\(a\|a\)\+\$' took more than 0.05 s"):
        run(session)


def test_a_failed_run_that_counts_is_read_and_one_that_does_not_is_not():
    failed = replace(ANSWER, exit_status=1)
    session = TrialSession(Lab(failed, failed), replace(MEASURED, ignore_failure=True))
    assert session.run_candidate(POLICY).value == 12
    assert TrialSession(Lab(failed), MEASURED).run_candidate(POLICY).value == 2.5


def test_an_observation_holds_the_whole_output():
    long = "x" * 9000
    observation = Observation(1, 1, (), (), 0, 0, 0, 0).to_json()
    sample, _ = TrialSession(Lab(replace(ANSWER, output=long, observation=observation)), WORKLOAD).observe()
    assert sample.output_tail == long


def test_a_run_under_a_candidate_carries_the_policy():
    lab = Lab(ANSWER)
    sample = TrialSession(lab, MEASURED).run_candidate(POLICY)
    assert (sample.arm, sample.value) == (POLICY.candidate.key, 12)
    assert lab.asked[0].policy.object_bytes == b"elf"


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"exit_status": 2}, "exit status 2"),
        ({"exit_status": -9}, "exit status -9"),
        ({"exit_status": None}, "time limit"),
    ],
)
def test_a_failure_under_the_default_stops_with_the_output(changes, why):
    lab = Lab(replace(ANSWER, output="cc: no such file\n", **changes))
    with pytest.raises(WorkloadFailed, match=rf"'make -j' failed .*{why}\n    cc: no such file"):
        TrialSession(lab, WORKLOAD).run_default()


@pytest.mark.parametrize("changes", [{"exit_status": 2}, {"exit_status": None}, {"policy_exit": "stall"}])
def test_a_failure_under_a_candidate_stands_in_the_sample(changes):
    sample = TrialSession(Lab(replace(ANSWER, **changes)), MEASURED).run_candidate(POLICY)
    assert sample.failure
    assert sample.output_tail.endswith("p99: 12\n")


def test_a_command_that_fails_is_shown_as_it_can_be_pasted():
    workload = replace(WORKLOAD, command=r"grep '\d' it\'s", prepare=r"printf '\n' > x")
    with pytest.raises(WorkloadFailed) as caught:
        TrialSession(Lab(replace(ANSWER, exit_status=2)), workload).run_default()
    assert rf"the workload {quoted(workload.command)} failed" in caught.value.message
    with pytest.raises(WorkloadFailed) as caught:
        TrialSession(Lab(replace(ANSWER, prepare_status=2)), workload).run_default()
    assert r"--prepare command 'printf '\''\n'\'' > x' ended" in caught.value.message


def test_prepare_that_fails_stops_everything():
    workload = replace(WORKLOAD, prepare="make clean")
    with pytest.raises(WorkloadFailed, match=r"--prepare command 'make clean' ended with exit status 2\n    no rule"):
        TrialSession(Lab(replace(ANSWER, prepare_status=2, output="no rule")), workload).run_candidate(POLICY)


def test_one_machine_serves_all_runs_and_a_lost_one_is_replaced_by_one_that_ran_the_workload_once():
    cold = replace(ANSWER, wall_ns=9_000_000_000)
    lab = Lab(ANSWER, VmLost("hung"), cold, ANSWER, ANSWER)
    session = TrialSession(lab, WORKLOAD)
    for _ in range(3):
        assert session.run_default().value == 2.5
    assert (lab.opened, lab.closed, lab.answers) == (2, 1, [])
    session.close()
    session.close()
    assert lab.closed == 2


def test_a_machine_lost_twice_is_raised_and_the_next_run_gets_a_fresh_one():
    lab = Lab(VmLost("one"), VmLost("two"), ANSWER, ANSWER)
    session = TrialSession(lab, WORKLOAD)
    with pytest.raises(VmLost, match="two"):
        session.run_candidate(POLICY)
    assert session.run_default().value == 2.5
    assert (lab.opened, lab.closed) == (3, 2)


def test_an_observation_that_is_missing_is_a_lost_vm():
    with pytest.raises(VmLost, match="no observation"):
        TrialSession(Lab(ANSWER), WORKLOAD).observe()


def test_an_ejection_that_may_be_the_hosts_doing_is_tried_once_more_and_no_more():
    late = replace(ANSWER, policy_exit="runnable task stall: watchdog failed to check in for 5.004s")
    assert TrialSession(Lab(late, ANSWER), WORKLOAD).run_candidate(POLICY).failure == ""
    assert "watchdog" in TrialSession(Lab(late, late, ANSWER), WORKLOAD).run_candidate(POLICY).failure
