"""How the phases around a policy's life are judged; the phases themselves run in tests/vm."""

import os
import re
from dataclasses import dataclass

import pytest

from kernel_bpf.load.exit_info import ExitInfo
from schedagent.core.errors import BpfError, KernelRejected
from schedagent.core.rules import RULES
from verifier.proving import crew as crew_module
from verifier.proving import lifecycle, overhead
from verifier.proving.crew import Crew
from verifier.proving.lifecycle import CPU_HOTPLUG, RUN_AGAIN_BOUND_S, Wait, figures, judge_hotplug_end

RESTART_ON_HOTPLUG = 0x1000100000000


@dataclass
class Ended:
    """A loaded policy as judge_hotplug_end sees it."""

    info: ExitInfo | None = None
    alive: bool = False

    def enabled(self) -> bool:
        return self.alive

    def detach(self) -> ExitInfo | None:
        return self.info


@pytest.mark.parametrize("oracle", [*lifecycle.ORACLES, *overhead.ORACLES], ids=lambda oracle: oracle.name)
def test_every_oracle_is_named_by_its_rule(oracle):
    assert oracle.name in RULES[oracle.rule].checks


def waits(*seconds: float) -> list[Wait]:
    return [Wait("attach", each) for each in seconds]


def test_the_longest_wait_decides():
    assert lifecycle.judge(CPU_HOTPLUG, waits(0.1, RUN_AGAIN_BOUND_S, 0.2), "", "").ok
    late = lifecycle.judge(CPU_HOTPLUG, waits(0.1, RUN_AGAIN_BOUND_S + 0.01), "", "told")
    assert (late.ok, late.measured, late.detail) == (False, RUN_AGAIN_BOUND_S + 0.01, "told")


def test_a_problem_fails_whatever_was_measured():
    result = lifecycle.judge(CPU_HOTPLUG, waits(0.1), "it broke", "figures")
    assert (result.ok, result.detail) == (False, "it broke; figures")
    assert not lifecycle.judge(CPU_HOTPLUG, [], "it broke", "").ok


@pytest.mark.parametrize(
    ("policy", "fine", "told"),
    [
        (Ended(alive=True), True, "stayed enabled"),
        (Ended(ExitInfo(66, "unregistered by the kernel", RESTART_ON_HOTPLUG, "", "")), True, "restart"),
        (Ended(ExitInfo(65, "unregistered by BPF", RESTART_ON_HOTPLUG, "", "")), True, "restart"),
        (Ended(None), True, "no reason"),
        (Ended(ExitInfo(66, "unregistered by the kernel", 0, "", "")), False, "did not survive"),
        (Ended(ExitInfo(1026, "stall", RESTART_ON_HOTPLUG, "", "hog[1] failed to run")), False, "failed to run"),
    ],
)
def test_what_is_a_good_answer_to_hotplug(policy, fine, told):
    problem, ending = judge_hotplug_end(policy)
    assert (problem == "") is fine
    assert told in (problem or ending)


@pytest.mark.parametrize("error", [KernelRejected("once was enough"), BpfError("no memory")])
def test_a_policy_that_will_not_load_again_is_a_problem_not_an_error(error, monkeypatch):
    closed = []

    class Loaded(Ended):
        def __enter__(self):
            return self

        def __exit__(self, *_raised):
            closed.append(self)

    answers = iter([error, Loaded(None)])

    def load(**_options):
        answer = next(answers)
        if isinstance(answer, Exception):
            raise answer
        return answer

    monkeypatch.setattr(lifecycle, "count_loaded", lambda: (0, 0))
    [result] = lifecycle.reload_loop(load, 0.0)
    assert (result.ok, result.detail.split(";")[0]) == (False, error.message)
    assert len(closed) == 1, "the one that did load is not left behind"


def test_what_stays_behind_is_counted(monkeypatch):
    monkeypatch.setattr(lifecycle, "RUN_AGAIN_BOUND_S", 0.02)
    counts = iter([(7, 3), (5, 3)])
    monkeypatch.setattr(lifecycle, "count_loaded", lambda: next(counts))
    assert lifecycle.leftovers((5, 3)) == ""
    monkeypatch.setattr(lifecycle, "count_loaded", lambda: (5, 4))
    assert lifecycle.leftovers((6, 3)) == "0 BPF programs and 1 maps stayed behind"


def test_waiting_ends_when_the_last_task_ran(monkeypatch):
    monkeypatch.setattr(lifecycle, "RUN_AGAIN_BOUND_S", 60.0)

    class Ran:
        def __init__(self, *used_ns: int) -> None:
            self.used_ns = list(used_ns)

        def family_ns(self) -> int:
            return self.used_ns.pop(0) if len(self.used_ns) > 1 else self.used_ns[0]

        def whereabouts(self) -> str:
            return "free: 7 in state R on CPU 1"

    assert lifecycle.until_all_ran([Ran(5, 5, 6), Ran(1, 2)], "attach 1").seconds < 60.0
    monkeypatch.setattr(lifecycle, "RUN_AGAIN_BOUND_S", 0.1)
    late = lifecycle.until_all_ran([Ran(5, 6), Ran(1)], "attach 2")
    assert late.seconds > 0.1
    assert f"{late.seconds:.2f} s after attach 2: these had not run: free: 7 in state R on CPU 1; up to" in figures(
        [late]
    )
    assert figures(waits(0.05, 0.06)) == "all tasks ran again within 0.05, 0.06 s"
    assert "attach: all had run; up to" in figures(waits(0.2)), "the watcher was late"


def test_who_waits_for_a_child_that_runs_is_not_kept_from_running():
    """The fork storm's own CPU time stands still meanwhile."""

    def waits_for_a_busy_child(record):
        if os.fork() == 0:
            parent = os.getppid()
            while os.getppid() == parent:
                record.events += 1
            os._exit(0)
        os.wait()

    with Crew() as crew:
        task = crew.start("fork storm", waits_for_a_busy_child)
        while not task.record.events:
            pass
        own_ns, child = task.cpu_ns(), crew_module._children(task.pid)
        wait = lifecycle.until_all_ran([task], "attach 1")
        assert (wait.stuck, len(child)) == ((), 1)
        assert wait.seconds < RUN_AGAIN_BOUND_S
        assert task.cpu_ns() - own_ns < task.family_ns() - own_ns


def test_a_task_that_did_not_run_is_told_with_its_place_and_its_child():
    reader, writer = os.pipe()

    def waits_for_its_child(record):
        if os.fork() == 0:
            os.close(writer)
            os.read(reader, 1)
            os._exit(0)
        record.events += 1
        os.wait()
        os._exit(0)

    with Crew() as crew:
        task = crew.start("fork storm", waits_for_its_child)
        pattern = rf"fork storm: {task.pid} in state S on CPU \d+.*, its child \d+ in state S on CPU \d+.*"
        while not re.fullmatch(pattern, told := task.whereabouts()):
            assert "gone" not in told
    for end in (reader, writer):
        os.close(end)
    assert re.fullmatch(r"\d+ is gone", crew_module._whereabouts(task.pid))


def test_the_switches_are_put_back(tmp_path, monkeypatch):
    knob = tmp_path / "sched" / "ext_server" / "cpu0" / "runtime"
    knob.parent.mkdir(parents=True)
    knob.write_text("50000000\n")
    throttle = tmp_path / "sched_rt_runtime_us"
    throttle.write_text("950000\n")
    monkeypatch.setattr(lifecycle, "_DEBUGFS", tmp_path)
    monkeypatch.setattr(lifecycle, "_RT_RUNTIME", throttle)
    with lifecycle.no_deadline_servers():
        assert (knob.read_text(), throttle.read_text()) == ("0", "-1")
    assert (knob.read_text(), throttle.read_text()) == ("50000000", "950000")
