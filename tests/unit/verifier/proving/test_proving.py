"""The proving ground's judges, with made-up measurements, and its tables."""

from __future__ import annotations

import os
import time
from itertools import pairwise

import pytest

from schedagent.core.rules import RULES
from verifier.lab.doubt import STALL_S, doubtful
from verifier.microvm import jobs
from verifier.proving import conservation, crowd, mix, prove, shares, work
from verifier.proving.crew import Record
from verifier.proving.mix import Gap
from verifier.proving.prove import ORACLES, PHASES, Depth, chosen, phases_at

MS = 1_000_000


class Told:
    """A task of which only its record is looked at."""

    def __init__(self, name="a task", **fields):
        self.name = name
        self.record = Record()
        for field, value in fields.items():
            setattr(self.record, field, value)


def test_a_gap_is_the_longest_time_without_cpu_time():
    gap = Gap(10.0, 500)
    for now, used in ((10.1, 501), (10.5, 501), (10.9, 501), (11.0, 502), (11.2, 502)):
        gap.look(now, used)
    assert gap.longest_s == pytest.approx(0.9)


def test_a_gap_that_has_not_ended_counts():
    gap = Gap(10.0, 500)
    gap.look(13.0, 500)
    assert gap.longest_s == pytest.approx(3.0)


def test_a_record_keeps_the_worst_and_what_still_lasts():
    record = Record()
    record.note(3 * MS)
    record.note(1 * MS)
    assert (record.events, record.worst_ns, record.samples_ns()) == (2, 3 * MS, [3 * MS, 1 * MS])
    assert record.longest_s() == pytest.approx(0.003)
    record.began_ns = time.monotonic_ns() - 2_000 * MS
    assert record.longest_s() == pytest.approx(2.0, abs=0.1)


def test_a_record_keeps_no_more_samples_than_its_page_holds():
    record = Record()
    for value in range(1000):
        record.note(value)
    assert record.events == 1000
    assert len(record.samples_ns()) == len(record.words) - 8
    assert max(record.samples_ns()) == 999


def turns(heavy_ms, light_ms, rounds, step_ms=6):
    """CPU times of two tasks that take turns of fixed lengths, sampled every `step_ms`; ends after a heavy turn."""
    samples, heavy, light = [], 0, 0
    for clock in range(0, rounds * (heavy_ms + light_ms) + heavy_ms, step_ms):
        rest = clock % (heavy_ms + light_ms)
        full = clock // (heavy_ms + light_ms)
        heavy = full * heavy_ms + min(rest, heavy_ms)
        light = full * light_ms + max(0, rest - heavy_ms)
        samples.append((heavy * MS, light * MS))
    return samples


@pytest.mark.parametrize(("heavy_ms", "light_ms"), [(150, 50), (30, 10), (15, 5)])
def test_whole_rounds_are_counted(heavy_ms, light_ms):
    """Of 3 rounds and a half, a window that ends anywhere would give up to 4 to 1."""
    ratio = shares.share_ratio(turns(heavy_ms, light_ms, rounds=max(3, 600 // heavy_ms)))
    assert ratio == pytest.approx(3.0, rel=0.07)


def test_without_ends_of_rounds_all_samples_count():
    samples = [(number * 30 * MS, number * 10 * MS) for number in range(20)]
    assert shares.share_ratio(samples) == pytest.approx(3.0)


def test_weights_hold_within_a_fifth():
    def judged(ratio):
        return shares.judge_weights([(int(number * ratio * MS), number * MS) for number in range(100)])

    assert judged(shares.WEIGHT_RATIO).measured == pytest.approx(0.0, abs=0.01)
    assert judged(shares.WEIGHT_RATIO * 1.19).ok
    assert not judged(shares.WEIGHT_RATIO * 1.21).ok
    assert not judged(1.0).ok


@pytest.mark.parametrize("samples", [[], [(5, 5)], [(0, 0), (9 * MS, 0)]])
def test_a_hog_that_got_nothing_has_no_share(samples):
    result = shares.judge_weights(samples)
    assert not result.ok
    assert "had none" in result.detail


def test_the_sleeper_must_come_back_and_let_its_rival_live():
    assert shares.judge_return(0.06, came_back=True).ok
    assert not shares.judge_return(0.7, came_back=True).ok
    assert not shares.judge_return(0.0, came_back=False).ok


def test_conservation_takes_the_worse_of_both_figures():
    short, long = [MS // 2] * 9, [MS * 20] * 9
    assert conservation.judge(0.05, short).ok
    assert conservation.judge(0.05, short).measured == pytest.approx(0.05)
    assert not conservation.judge(0.5, short).ok
    assert not conservation.judge(0.05, long).ok
    assert not conservation.judge(0.05, []).ok, "a task that was woken and never ran"


def test_one_late_wakeup_is_the_hosts():
    assert conservation.judge(0.05, [MS // 2] * 8 + [MS * 900]).ok


def test_a_crowd_may_not_hold_up_the_others():
    assert crowd.judge(8000, 7000).ok
    assert not crowd.judge(8000, 2000).ok
    assert not crowd.judge(8000, 0).ok


def test_a_host_that_is_busy_for_a_moment_is_not_taken_for_a_crowd(monkeypatch):
    windows, asked_s = [7000, 500, 6800, 900, 6900, 800], []

    def rate(_ground, _tasks, seconds):
        asked_s.append(seconds)
        return windows.pop(0)

    monkeypatch.setattr(crowd, "rate", rate)
    few, many = (crowd.best_rate(None, [], 0.3) for _ in range(2))
    assert crowd.judge(few, many).ok
    assert asked_s == pytest.approx([0.1] * 6)


def crowds(*windows):
    """What stands beside the small and the large crowd in turn."""
    left = list(windows)
    return crowd.compare(lambda _size: left.pop(0)), left


def test_a_host_that_gets_busier_between_the_crowds_is_not_taken_for_one():
    """Two correct policies failed so, at 2.21 and 1.73, beside other work."""
    result, left = crowds(7884, 3569, 7500, 6900, "not asked")
    assert (result.ok, left) == (True, ["not asked"])
    assert "7884 wake-ups a second on the other CPU beside 50 pinned tasks, 6900 beside 800" in result.detail


def test_a_host_that_was_busy_beside_the_small_crowd_is_asked_again():
    """A broken policy passed so, at 0.46."""
    result, _left = crowds(900, 1970, *[8000, 3000] * crowd.ROUNDS)
    assert not result.ok
    assert crowds(*[900, 1970] * crowd.ROUNDS)[1] == []


def test_a_crowd_that_holds_up_the_others_does_so_each_time():
    result, left = crowds(*[8000, 3000] * crowd.ROUNDS)
    assert (result.ok, left) == (False, [])
    assert crowds(8000, 7900)[0].ok
    assert crowds(8000, 3000, None, 3000)[0] is None, "a crowd that does not wake shows nothing"


def test_affinity_counts_tasks_in_the_wrong_place_and_those_that_are_stuck():
    def judged(gap_s=0.2, misplaced=0, **fields):
        return mix.affinity_result(Told(**fields), gap_s, misplaced)

    assert judged(events=20).ok
    assert not judged(events=20, wrong=1).ok
    assert not judged(events=20, misplaced=1).ok
    assert not judged(events=0).ok
    assert not judged(events=20, gap_s=mix.STARVATION_BOUND_S + 0.1).ok


def test_a_fork_that_fails_breaks_the_rule_however_fast_the_others_are():
    assert mix.forks_result(Told(events=9, worst_ns=300 * MS)).ok
    assert not mix.forks_result(Told(events=9, worst_ns=6000 * MS)).ok
    assert not mix.forks_result(Told(events=0)).ok
    refused = mix.forks_result(Told(events=9, worst_ns=300 * MS, errno=12))
    assert not refused.ok
    assert os.strerror(12) in refused.detail


def test_a_wakeup_that_has_not_come_counts():
    waiting = Told("sleeper 1", events=3, began_ns=time.monotonic_ns() - 4_000 * MS)
    result = mix.latency_result(mix.WAKEUPS, [Told("sleeper 0", events=9, worst_ns=MS), waiting], "wake-ups")
    assert not result.ok
    assert result.detail == "12 wake-ups; sleeper 1 waited longest"


def test_every_oracle_is_a_check_of_its_rule():
    for info in ORACLES.values():
        assert info.name in RULES[info.rule].checks, info.name
        assert info.bound >= 0
        assert info.reason.endswith(".")


def test_every_check_of_a_rule_is_an_oracle():
    assert {check for rule in RULES.values() for check in rule.checks} == set(ORACLES)


def test_no_oracle_belongs_to_two_phases():
    assert len(ORACLES) == sum(len(phase.oracles) for phase in PHASES)
    assert len({phase.name for phase in PHASES}) == len(PHASES)
    for phase in PHASES:
        assert [bool(way) for way in (phase.under_load, phase.ending, phase.alone)].count(True) == 1
    assert sum(bool(phase.ending) for phase in PHASES) == 1, "what ends the policy leaves none for another phase"


def test_all_phases_take_the_seconds_of_their_depth():
    assert sum(phase.share(Depth.STANDARD.value) for phase in phases_at(Depth.STANDARD)) <= Depth.STANDARD.value
    for phase in PHASES:
        assert phase.share(Depth.QUICK.value) >= phase.least_s
        assert phase.share(Depth.THOROUGH.value) > phase.share(Depth.STANDARD.value)


def test_each_depth_runs_what_the_one_before_does():
    names = [[phase.name for phase in phases_at(depth)] for depth in Depth]
    for fewer, more in pairwise(names):
        assert set(fewer) <= set(more)
    assert set(names[2]) - set(names[1]) == {"groups", "moved clock"}
    assert set(names[-1]) - set(names[-2]) == {"soak"}


def test_what_a_stranger_wrote_goes_through_the_groups_at_every_depth():
    for depth in Depth:
        names = {phase.name for phase in phases_at(depth, strange=True)}
        assert names == {phase.name for phase in phases_at(depth)} | {"groups", "moved clock"}


def test_phases_are_run_in_the_order_of_the_table():
    assert chosen([phase.name for phase in reversed(PHASES)]) == list(PHASES)
    assert [phase.name for phase in chosen(["shares", "mix"])] == ["mix", "shares"]
    with pytest.raises(KeyError, match="hotpulg"):
        chosen(["hotpulg"])


def test_a_crowd_that_must_not_migrate_confirms_what_the_mix_shows():
    starvation, migration = mix.STARVATION.judge(0.5, "mix"), mix.MIGRATION.judge(0.5, "mix")
    results = [starvation, migration]
    assert mix.judge_crowd(results, mix.CROWD_TURNS, []) == results
    assert mix.judge_crowd(results, mix.CROWD_TURNS - 1, []) == [starvation], "it hardly came about: no result"
    passed, failed = mix.judge_crowd(results, 3, ["number 2"])
    assert passed == starvation
    assert (failed.name, failed.ok) == (mix.MIGRATION.name, False)
    assert "CPU time to die: number 2" in failed.detail


def test_the_mix_outlasts_its_bound():
    """A task that is lost in the first instants must be seen to be lost."""
    phase = next(phase for phase in PHASES if phase.under_load is mix.prove)
    assert phase.least_s > mix.STARVATION_BOUND_S
    assert prove.WATCHDOG_MS / 1000 > mix.STARVATION_BOUND_S


def test_only_a_failure_beside_a_stall_is_looked_at_twice():
    bad = [{"name": "starvation", "ok": False}]

    def answer(results=(), exit_text="", stalled_s=0.0):
        return jobs.ProveAnswer(exit_text, list(results), {}, {}, stalled_s)

    assert doubtful(answer(bad, stalled_s=STALL_S))
    assert doubtful(answer(exit_text="stall", stalled_s=STALL_S))
    assert not doubtful(answer(bad, stalled_s=STALL_S / 2))
    assert not doubtful(answer(stalled_s=9.0))


def test_the_smallest_program_is_the_loader():
    assert os.access(work.smallest_program(), os.X_OK)
