"""How the phases around a policy's life, and its overhead, are judged; the phases themselves run in tests/vm."""

import os
from dataclasses import dataclass

import pytest

from kernel_bpf.load.exit_info import ExitInfo
from schedagent.core.errors import BpfError, KernelRejected
from schedagent.core.rules import RULES
from verifier.proving import lifecycle, overhead
from verifier.proving.crew import Crew
from verifier.proving.lifecycle import CPU_HOTPLUG, RUN_AGAIN_BOUND_S, judge_hotplug_end
from verifier.proving.overhead import IDLE_MACHINE, MOST_PAIRS, QUIET_SHARE, Probe

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


def test_the_longest_wait_decides():
    assert lifecycle.judge(CPU_HOTPLUG, [0.1, RUN_AGAIN_BOUND_S, 0.2], "", "").ok
    late = lifecycle.judge(CPU_HOTPLUG, [0.1, RUN_AGAIN_BOUND_S + 0.01], "", "told")
    assert (late.ok, late.measured, late.detail) == (False, RUN_AGAIN_BOUND_S + 0.01, "told")


def test_a_problem_fails_whatever_was_measured():
    result = lifecycle.judge(CPU_HOTPLUG, [0.1], "it broke", "figures")
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
    monkeypatch.setattr(lifecycle, "RUN_AGAIN_BOUND_S", 0.1)

    class Ran:
        def __init__(self, *used_ns: int) -> None:
            self.used_ns = list(used_ns)

        def cpu_ns(self) -> int:
            return self.used_ns.pop(0) if len(self.used_ns) > 1 else self.used_ns[0]

    assert lifecycle.until_all_ran([Ran(5, 5, 6), Ran(1, 2)]) < 0.1
    assert lifecycle.until_all_ran([Ran(5, 6), Ran(1)]) > 0.1


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


def probe(*found: float, disturbed: int = 0) -> Probe:
    """A probe that has measured these ratios."""
    measured = Probe(IDLE_MACHINE, Crew(), 1, disturbed=disturbed)
    for ratio in found:
        measured.add(1000.0, 1000.0 * ratio)
    return measured


def test_only_a_certain_loss_counts():
    assert probe(0.5, 0.6, 0.7, 0.8, 0.95).judge().ok
    result = probe(0.8, 0.8, 0.8, 0.82, 0.85).judge()
    assert (result.ok, result.measured) == (False, 0.15)
    assert "0.80 of the default scheduler's throughput (0.80 to 0.85 in 5 pairs" in result.detail
    assert probe(1.3, 1.2, 1.1, 1.1, 1.1).judge().measured == 0


def test_one_odd_pair_of_many_neither_condemns_nor_pardons():
    slow = probe(*[0.7] * (MOST_PAIRS - 1))
    slow.add(500.0, 650.0)
    assert not slow.judge().ok
    assert probe(*[0.97] * (MOST_PAIRS - 1), 0.1).judge().ok


def test_the_best_windows_may_pardon():
    assert not probe(*[0.8] * 5).judge().ok
    lucky = probe(*[0.8] * 5)
    lucky.add(1100.0, 1000.0)
    lucky.add(1110.0, 1000.0)
    assert lucky.judge().ok


def test_a_busy_host_condemns_nobody():
    busy_host = Probe(IDLE_MACHINE, Crew(), 2)
    busy_host.add(QUIET_SHARE * 2000 - 1, 100)
    assert (busy_host.pairs, busy_host.disturbed) == ([], 1)
    busy_host.add(QUIET_SHARE * 2000 + 1, 100)
    assert (len(busy_host.pairs), busy_host.disturbed) == (1, 1)
    assert probe(0.5, 0.5, 0.5, disturbed=4).judge().ok
    assert "nothing can be concluded" in probe(disturbed=MOST_PAIRS).judge().detail


@pytest.mark.parametrize(
    ("found", "disturbed", "tells"),
    [
        ([1.0], 0, False),
        ([1.0, 0.93], 0, True),
        ([1.0, 0.8], 0, False),
        ([0.8, 0.7, 0.9, 0.8, 0.91], 0, True),
        ([0.5] * (MOST_PAIRS - 1), 0, False),
        ([0.5] * MOST_PAIRS, 0, True),
        ([1.0], 4, False),
        ([], MOST_PAIRS, True),
        ([0.5] * 2, MOST_PAIRS - 2, True),
    ],
)
def test_pairs_are_added_until_they_tell(found, disturbed, tells):
    assert probe(*found, disturbed=disturbed).decided() is tells


@pytest.mark.parametrize("found", [(1.0, 0.93), (0.9, 0.4, 0.4, 0.91)])
def test_no_later_pair_changes_what_is_decided(found):
    assert probe(*found).decided()
    for more in range(MOST_PAIRS - len(found) + 1):
        assert probe(*found, *[0.1] * more).judge().ok


def test_a_unit_takes_about_what_it_should():
    rounds = overhead.calibrate()
    start = os.times().user
    for _ in range(100):
        overhead.work(rounds)
    assert 0.03 < os.times().user - start < 0.3


def test_turns_hand_the_token_on():
    with Crew() as crew:
        overhead.start_turns(crew, 10)
        assert Probe(IDLE_MACHINE, crew, 1).throughput(0.2) > 10
        first, second = (task.record.events for task in crew.tasks)
        assert abs(first - second) <= 1
