"""The lab without a VM: what a run's answer becomes, and what happens when the machine is lost."""

from __future__ import annotations

import logging
import math
import os
import re
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from schedagent.core.errors import HostBusy, KernelRejected, MetricError, UsageError, VmLost, WorkloadFailed
from schedagent.core.policies.artifact import PolicyArtifact
from schedagent.core.policies.policy import CandidatePolicy
from schedagent.core.policies.program import SchedulerProgram, digest_of
from schedagent.core.process.shell_text import quoted
from schedagent.core.readings import metric as metric_reading
from schedagent.core.trials.objective import Direction, Guard, Metric
from schedagent.core.trials.trial import DEFAULT_ARM
from schedagent.core.trials.usage import CommandUsage, Usage
from schedagent.core.trials.workload import Goal, Observation, WorkloadCommand
from verifier.lab.doubt import twice
from verifier.lab.vm import Cell, LabPolicy, LabProgram, TrialSession
from verifier.microvm import jobs
from verifier.microvm.topology import SHAPED, Topology
from verifier.proving.prove import SHAPED_PHASES, Depth, phases_at

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

    def placed(self, arm: LabPolicy | LabProgram, job: jobs.RunWorkload) -> jobs.RunWorkload:
        return arm.placed(job)


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
    default = TrialSession(Lab(ANSWER), NAMED).run_default()
    assert math.isnan(default.value)
    assert re.fullmatch(r"--metric steps '.*' matched nothing in the workload's output", default.failure)
    sample = TrialSession(Lab(ANSWER), NAMED).run_candidate(POLICY)
    assert (sample.value, sample.failure) == (12, "")
    assert sample.values["p99"] == 12
    assert math.isnan(sample.values["rps"])
    assert math.isnan(sample.values["steps"])


def test_a_unit_that_changes_between_the_runs_of_a_session_is_refused():
    session = TrialSession(Lab(replace(ANSWER, output="p99: 12 ms"), replace(ANSWER, output="p99: 12")), MEASURED)
    assert session.run_default().value == 0.012
    changed = session.run_candidate(POLICY)
    assert re.search(r"was seconds in one place \(`p99: 12 ms`\) and a count in .* \(`p99: 12`\)", changed.failure)


@pytest.mark.parametrize("run", [lambda session: session.run_default(), lambda session: session.run_candidate(POLICY)])
def test_an_expression_that_backtracks_is_stopped_in_either_arm(run, monkeypatch):
    monkeypatch.setattr(metric_reading, "LIMIT_S", 0.05)
    session = TrialSession(Lab(replace(ANSWER, output="a" * 60 + "b")), replace(MEASURED, metric="(a|a)+$"))
    assert "'(a|a)+$' took more than 0.05 s" in run(session).failure


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
    workload = replace(WORKLOAD, setup="./configure", shell="/bin/bash", cleanup="make clean")
    done = jobs.SetupAnswer(0, "")
    lab = Lab(done, ANSWER, VmLost("hung"), done, ANSWER, ANSWER)
    session = TrialSession(lab, workload)
    session.run_default()
    session.run_default()
    assert [type(job).__name__ for job in lab.asked] == [
        *("RunSetup", "RunWorkload", "RunWorkload", "RunSetup", "RunWorkload", "RunWorkload")
    ]
    assert [job.command for job in lab.asked[:2]] == ["./configure", "make -j"]
    assert [job.shell for job in lab.asked[:2]] == [["/bin/bash"]] * 2
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


def shown(*results, undecided=(), **fields):
    """What a machine answers: oracles that hold or do not, and those without a verdict."""
    found = [{"name": name, "ok": ok} for name, ok in results]
    return jobs.ProveAnswer("", found, {}, {"overhead": 2.0}, undecided=dict.fromkeys(undecided, "0 pairs"), **fields)


class ProvingLab(Lab):
    def __init__(self, *answers):
        super().__init__(*answers)
        self.more_cpus = []
        self.topologies = []

    def open(self, *, hostfs: bool, more_cpus: int = 0, topology: Topology | None = None) -> Machine:
        assert not hostfs
        self.more_cpus.append(more_cpus)
        self.topologies.append(topology)
        return Machine(self)

    def measuring(self):
        return nullcontext()


def proved(*answers):
    """Prove a policy in machines that answer so; return the last word and the phases that were asked for."""
    lab = ProvingLab(*answers)
    answer, phases = Cell(lab, POLICY).prove(Depth.THOROUGH), [job.phases for job in lab.asked]
    assert lab.more_cpus == [int(names == ["groups"]) for names in phases], "groups have a machine with one CPU more"
    return answer, phases


HERE = [phase.name for phase in phases_at(Depth.THOROUGH) if not phase.elsewhere]
THERE = jobs.ProveAnswer("", [{"name": "groups", "ok": True}], {}, {"groups": 1.0})
BOTH = ("idle machine", "saturated machine")


def test_what_a_busy_host_left_open_is_measured_once_more_and_only_that():
    first = shown(("starvation", True), ("idle machine", True), undecided=["saturated machine"])
    answer, phases = proved(first, THERE, shown(*[(name, True) for name in BOTH]))
    assert phases == [HERE, ["groups"], ["overhead"]]
    assert {result["name"] for result in answer.results} == {"starvation", "groups", *BOTH}
    assert (answer.undecided, answer.seconds) == ({}, {"overhead": 4.0, "groups": 1.0})


def test_a_shape_has_its_own_machine_phases_and_bounds(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: {0, 1})
    lab = ProvingLab(shown(("starvation", True)), shown(("starvation", True)))
    cell = Cell(lab, POLICY)
    answer = cell.prove_on(SHAPED, Depth.STANDARD)
    assert answer.results == [{"name": "starvation", "ok": True, "topology": "2x2x1x2"}]
    cell.prove(Depth.STANDARD, ["mix"])
    assert lab.topologies == [SHAPED, None]
    shaped, flat = lab.asked
    assert shaped.phases == [phase.name for phase in SHAPED_PHASES]
    assert (shaped.stretch, flat.stretch) == (2.0, 1.0)


def test_what_fails_on_a_shape_whose_cpus_stood_still_is_looked_at_twice_and_then_has_no_verdict():
    stalled = replace(shown(("starvation", False)), stalled_s=0.5)
    lab = ProvingLab(stalled, shown(("starvation", True)))
    assert Cell(lab, POLICY).prove_on(SHAPED, Depth.STANDARD).results[0]["ok"]
    assert lab.topologies == [SHAPED, SHAPED]
    with pytest.raises(HostBusy, match=r"a CPU of the 2x2x1x2 machine stood still for 0\.5 s"):
        Cell(ProvingLab(stalled, stalled), POLICY).prove_on(SHAPED, Depth.STANDARD)


def test_a_policy_that_was_ejected_is_not_taken_to_another_machine():
    answer, phases = proved(replace(shown(("starvation", False)), exit_text="stall: too late"))
    assert (answer.exit_text, phases) == ("stall: too late", [HERE])


def test_what_another_machine_shows_counts_as_much():
    ejected = replace(THERE, exit_text="error: on CPU 2", stalled_s=0.1, undecided={"groups": "why"})
    answer, _phases = proved(shown(("starvation", True)), ejected)
    assert (answer.exit_text, answer.stalled_s, answer.undecided) == ("error: on CPU 2", 0.1, {"groups": "why"})


def test_what_ran_in_the_first_machine_is_known_after_the_second_and_after_a_second_look():
    marks = {"passed": [1], "kept": [1, 2], "entered": [(7, 3)], "unmeasured": "a", "queues_unmeasured": "b"}
    first = replace(shown(("idle machine", True), undecided=["saturated machine"]), **marks)
    answer, _phases = proved(first, THERE, shown(*[(name, True) for name in BOTH]))
    assert {name: getattr(answer, name) for name in marks} == marks


def test_a_task_that_seems_to_have_waited_since_the_clocks_were_moved_is_looked_at_twice():
    ejected = replace(shown(), exit_text="stall: rcu_preempt[15] failed to run for 2592000.008s")
    answer, phases = proved(ejected, shown(("starvation", True)), THERE)
    assert (answer.exit_text, phases) == ("", [HERE, HERE, ["groups"]])
    again, phases = proved(ejected, ejected)
    assert (again.exit_text, phases) == (ejected.exit_text, [HERE, HERE]), "a task that is lost is lost again"


def test_what_is_open_twice_has_no_verdict():
    answer, phases = proved(shown(("starvation", True), undecided=BOTH), THERE, shown(undecided=BOTH))
    assert len(phases) == 3
    assert set(answer.undecided) == set(BOTH)
    assert [result["name"] for result in answer.results] == ["starvation", "groups"]


def test_what_held_once_is_not_lost_by_a_second_look_that_shows_nothing_and_what_fails_then_fails():
    first = shown(("idle machine", True), undecided=["saturated machine"])
    kept, _phases = proved(first, THERE, shown(("saturated machine", True), undecided=["idle machine"]))
    assert kept.undecided == {}
    lost, _phases = proved(first, THERE, shown(("idle machine", False), ("saturated machine", True)))
    assert [result["ok"] for result in lost.results if result["name"] == "idle machine"] == [False]


def test_nothing_is_measured_again_for_a_policy_that_failed_anyway():
    _answer, phases = proved(shown(("starvation", False), undecided=BOTH), THERE)
    assert phases == [HERE, ["groups"]]


class TestPrograms:
    """Runs under a scheduler that loads its policy itself."""

    @pytest.fixture
    def arm(self, tmp_path):
        file = tmp_path / "scx_ours"
        file.write_bytes(b"\x7fELF")
        return LabProgram(CandidatePolicy.of_program(SchedulerProgram(str(file), ("-s", "1"), digest_of(file))), 7.0)

    def test_the_guest_starts_it_and_its_own_cpu_time_stands_beside_the_works(self, arm):
        usage = asdict(Usage(3, 4, left_behind=()))
        lab = Lab(replace(ANSWER, usage=usage, loader=jobs.LoaderAnswer("", 55)))
        sample = TrialSession(lab, WORKLOAD).run_candidate(arm)
        [job] = lab.asked
        assert job.loader == jobs.LoaderStart([arm.candidate.program.path, "-s", "1"], 7.0)
        assert (job.policy, sample.arm, sample.failure) == (None, arm.candidate.key, "")
        assert (sample.cpu_ns, sample.usage.loader_cpu_ns) == (4_000_000_000, 55)

    def test_what_went_wrong_with_it_is_the_failure_of_the_run(self, arm):
        nothing = jobs.RunAnswer(0, 0, None, 0, 1000, "", "", None, loader=jobs.LoaderAnswer("its program ended"))
        assert TrialSession(Lab(nothing), WORKLOAD).run_candidate(arm).failure == "its program ended"
        hung = replace(ANSWER, loader=jobs.LoaderAnswer("its program was still running"))
        assert TrialSession(Lab(hung), WORKLOAD).run_candidate(arm).failure == "its program was still running"
        ejected = replace(ANSWER, policy_exit="stall", exit_status=None, loader=jobs.LoaderAnswer(""))
        assert TrialSession(Lab(ejected), WORKLOAD).run_candidate(arm).failure == "the kernel ejected the policy: stall"

    def test_the_default_scheduler_runs_after_it_was_in_charge_and_gone(self, arm):
        lab = Lab(ANSWER)
        assert TrialSession(lab, WORKLOAD).run_default(arm).arm == DEFAULT_ARM
        [job] = lab.asked
        assert (job.loader.argv[1:], job.attached) == (["-s", "1"], False)

    def test_another_file_under_its_name_ends_the_run(self, arm):
        Path(arm.candidate.program.path).write_bytes(b"\x7fELF, rebuilt")
        with pytest.raises(UsageError, match="has changed since this run began"):
            TrialSession(Lab(ANSWER), WORKLOAD).run_candidate(arm)

    def test_it_travels_as_json(self, arm):
        job = arm.placed(TrialSession(Lab(), WORKLOAD)._job(None))
        assert jobs.RunWorkload.from_json(job.to_json()) == job
        answer = replace(ANSWER, loader=jobs.LoaderAnswer("why", 5))
        assert jobs.RunAnswer.from_json(answer.to_json()) == answer
