"""The lab without a VM: what a run's answer becomes, and what happens when the machine is lost."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import asdict, replace

import pytest

from schedagent.core.errors import KernelRejected, MetricError, VmLost, WorkloadFailed
from schedagent.core.policies.artifact import PolicyArtifact
from schedagent.core.policies.policy import CandidatePolicy
from schedagent.core.process.shell_text import quoted
from schedagent.core.trials.trial import DEFAULT_ARM
from schedagent.core.trials.usage import CommandUsage, Usage
from schedagent.core.trials.workload import Goal, WorkloadCommand
from verifier.lab.vm import FAILURE_OUTPUT_LINES, LabPolicy, TrialSession, find_metric, last_lines, twice
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


class TestFindMetric:
    def test_the_last_match_counts(self):
        assert find_metric(r"p99: ([\d.]+)", "p99: 1\nnoise\np99: 2.5 ms") == 2.5

    def test_without_a_group_the_whole_match_is_the_number(self):
        assert find_metric(r"\d+$", "took\n7\n") == 7

    def test_lines_have_beginnings_and_ends(self):
        assert find_metric(r"^total (\d+)$", "subtotal 1\ntotal 2\nend") == 2

    @pytest.mark.parametrize("text", ["nan", "inf", "0", "-3", "fast", ""])
    def test_what_is_no_number(self, text):
        with pytest.raises(MetricError, match=f"matched '{text}', which is not a positive number"):
            find_metric("is (.*)", f"is {text}")

    def test_a_group_that_took_no_part(self):
        with pytest.raises(MetricError, match="matched None"):
            find_metric("is( \\d+)?", "is")

    def test_the_expression_is_shown_as_it_can_be_given_again(self):
        with pytest.raises(MetricError) as caught:
            find_metric(r"it's (\d+)", "the end")
        assert r"--metric 'it'\''s (\d+)' matched nothing" in caught.value.message

    def test_no_match_shows_the_output(self):
        with pytest.raises(MetricError, match=r"matched nothing.*\n    the end") as caught:
            find_metric("p99: (.*)", "the end")
        assert "stdout and stderr" in caught.value.hint


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


def test_the_end_of_the_output():
    assert last_lines("") == "    (it printed nothing)"
    assert last_lines("one\ntwo") == "    one\n    two"
    shown = last_lines("\n".join(map(str, range(1000)))).splitlines()
    assert len(shown) == FAILURE_OUTPUT_LINES
    assert shown[-1] == "    999"


def test_a_run_under_the_default():
    lab = Lab(ANSWER)
    sample = TrialSession(lab, WORKLOAD).run_default()
    assert (sample.arm, sample.value, sample.failure) == (DEFAULT_ARM, 2.5, "")
    assert (sample.wall_ns, sample.calibration_ns) == (2_500_000_000, 1000)
    [job] = lab.asked
    assert (job.command, job.directory, job.policy, job.observe) == ("make -j", "/src", None, False)


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
        ({"exit_status": None, "waited": True}, "waited"),
    ],
)
@pytest.mark.parametrize("run", [TrialSession.warm_up, TrialSession.observe])
def test_a_failure_under_observation_stops_with_the_output(run, changes, why):
    lab = Lab(replace(ANSWER, output="cc: no such file\n", **changes))
    with pytest.raises(WorkloadFailed, match=rf"'make -j' failed .*{why}.*\n    cc: no such file"):
        run(TrialSession(lab, WORKLOAD))


@pytest.mark.parametrize(
    "changes", [{"exit_status": 2}, {"exit_status": None}, {"prepare_status": 2}, {"output": "no number"}]
)
def test_a_failure_of_the_default_in_a_trial_stands_in_the_sample(changes):
    sample = TrialSession(Lab(replace(ANSWER, **changes)), MEASURED).run_default()
    assert sample.failure


def test_a_number_that_is_missing_stops_an_observation():
    with pytest.raises(MetricError, match="matched nothing"):
        TrialSession(Lab(replace(ANSWER, output="no number")), MEASURED).observe()


@pytest.mark.parametrize("changes", [{"exit_status": 2}, {"exit_status": None}, {"policy_exit": "stall"}])
def test_a_failure_under_a_candidate_stands_in_the_sample(changes):
    sample = TrialSession(Lab(replace(ANSWER, **changes)), MEASURED).run_candidate(POLICY)
    assert sample.failure
    assert sample.output_tail.endswith("p99: 12\n")


def test_a_command_that_fails_is_shown_as_it_can_be_pasted():
    workload = replace(WORKLOAD, command=r"grep '\d' it\'s", prepare=r"printf '\n' > x")
    with pytest.raises(WorkloadFailed) as caught:
        TrialSession(Lab(replace(ANSWER, exit_status=2)), workload).observe()
    assert rf"the workload {quoted(workload.command)} failed" in caught.value.message
    with pytest.raises(WorkloadFailed) as caught:
        TrialSession(Lab(replace(ANSWER, prepare_status=2)), workload).observe()
    assert r"--prepare command 'printf '\''\n'\'' > x' ended" in caught.value.message


def test_prepare_that_fails_stops_an_observation_and_spoils_one_run_of_a_trial():
    workload = replace(WORKLOAD, prepare="make clean", ignore_failure=True)
    answer = replace(ANSWER, prepare_status=2, output="no rule")
    with pytest.raises(WorkloadFailed, match=r"--prepare command 'make clean' ended with exit status 2\n    no rule"):
        TrialSession(Lab(answer), workload).observe()
    sample = TrialSession(Lab(answer), workload).run_candidate(POLICY)
    assert (sample.failure, sample.output_tail) == ("its --prepare command ended with exit status 2", "no rule")


def test_cleanup_that_fails_stops_an_observation():
    workload = replace(WORKLOAD, cleanup="rm x")
    answer = replace(ANSWER, cleanup_status=1, cleanup_output="rm: no x")
    with pytest.raises(WorkloadFailed, match=r"--cleanup command 'rm x' ended with exit status 1\n    rm: no x"):
        TrialSession(Lab(answer), workload).observe()
    assert TrialSession(Lab(answer), workload).run_default().failure == ""


def test_a_status_counts_or_does_not():
    failed = replace(ANSWER, exit_status=3)
    sample = TrialSession(Lab(failed), replace(MEASURED, ignore_failure=True)).run_default()
    assert (sample.failure, sample.exit_status, sample.value) == ("", 3, 12)
    assert TrialSession(Lab(failed), MEASURED).run_default().failure == "it ended with exit status 3"
    late = replace(ANSWER, exit_status=None)
    assert "time limit" in TrialSession(Lab(late), replace(MEASURED, ignore_failure=True)).run_default().failure


def test_setup_runs_once_in_each_machine_before_anything_else():
    workload = replace(WORKLOAD, setup="./configure", shell="bash -e", cleanup="make clean")
    done = jobs.SetupAnswer(0, "")
    lab = Lab(done, ANSWER, VmLost("hung"), done, ANSWER, ANSWER)
    session = TrialSession(lab, workload)
    session.run_default()
    session.run_default()
    assert [type(job).__name__ for job in lab.asked] == [
        *("RunSetup", "RunWorkload", "RunWorkload", "RunSetup", "RunWorkload", "RunWorkload")
    ]
    assert [job.command for job in lab.asked[:2]] == ["./configure", "make -j"]
    assert [job.shell for job in lab.asked[:2]] == [["bash", "-e"]] * 2
    assert lab.asked[1].cleanup == "make clean"


def test_setup_that_fails_is_said_and_lets_go_of_the_machine():
    lab = Lab(jobs.SetupAnswer(4, "no compiler\n"))
    with pytest.raises(WorkloadFailed, match=r"--setup command './configure' ended with exit status 4\n    no comp"):
        TrialSession(lab, replace(WORKLOAD, setup="./configure")).run_default()
    assert lab.closed == 1


def test_bytes_that_are_no_text_can_be_stored():
    sample = TrialSession(Lab(replace(ANSWER, output="a\udcff\0\x1b[31mé")), WORKLOAD).run_default()
    assert sample.output_tail == "a\\xff\0\x1b[31mé"
    sample.output_tail.encode()


def test_what_a_run_used_is_part_of_its_sample():
    usage = Usage(3, 4, (CommandUsage("cc", 1, 5, 6, 3, 4),), left_behind=("sleep",), output_bytes=7)
    sample = TrialSession(Lab(replace(ANSWER, usage=asdict(usage))), WORKLOAD).run_default()
    assert sample.usage == usage


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
