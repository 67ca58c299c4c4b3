"""Tiers 0 and 1 on this machine, and the arithmetic of intervals, cgroups and commands."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from kernel_bpf.observe.netlink import Taskstats
from schedagent.core.errors import UsageError
from schedagent.observing import sampling
from schedagent.observing.commands import ThreadCounters, grown, lifetimes, read_threads
from schedagent.observing.measure import Order, observe
from schedagent.observing.sampling import Counters, busiest_cgroups, intervals
from schedagent.observing.scope import Target


class Scripted:
    """A sampler whose counters grow as a test says, without /proc."""

    def __init__(self, clock, ran=1.0, waited=0.5, runs=100):
        self.clock, self.grows, self.count = clock, (ran, waited, runs), 0

    def sample(self):
        ran, waited, runs = (each * self.clock.now for each in self.grows)
        return Counters(self.clock.now, ran, waited, int(runs), 0.3 * self.clock.now)


class Clock:
    def __init__(self, monkeypatch):
        self.now = 0.0
        monkeypatch.setattr(sampling.time, "monotonic", lambda: self.now)
        self.cpu = 0.0
        monkeypatch.setattr(sampling.time, "thread_time", lambda: self.cpu)
        self.pauses = []

    def stopped(self, seconds):
        self.pauses.append(seconds)
        self.now += seconds
        return False


def test_growth_by_time_is_what_ran_and_what_waited(monkeypatch):
    clock = Clock(monkeypatch)
    seen = intervals(Scripted(clock), 5.0, 0.01, clock.stopped)
    assert len(seen) == 20
    assert {(each.cpus, each.waiting, each.delay_us, each.pressure) for each in seen} == {(1.0, 0.5, 5000.0, 0.3)}
    assert seen[-1].at_s == 5.0


def test_a_costly_sample_makes_the_next_one_wait(monkeypatch):
    clock = Clock(monkeypatch)

    def costs() -> None:
        clock.cpu += 0.01

    intervals(Scripted(clock), 20.0, 0.005, clock.stopped, costs)
    assert clock.pauses[1] == pytest.approx(2.0), "0.01 s of CPU are half a percent of 2 s"


def test_a_long_observation_has_a_bounded_number_of_intervals(monkeypatch):
    clock = Clock(monkeypatch)
    assert len(intervals(Scripted(clock), 3600.0, 0.01, clock.stopped)) <= sampling.MOST_INTERVALS


def test_nobody_interested_ends_it(monkeypatch):
    clock = Clock(monkeypatch)
    assert intervals(Scripted(clock), 5.0, 0.01, lambda _seconds: True) == []


def test_nothing_that_ran_has_no_mean_wait(monkeypatch):
    clock = Clock(monkeypatch)
    assert {each.delay_us for each in intervals(Scripted(clock, 0, 0, 0), 1.0, 0.01, clock.stopped)} == {-1.0}


def test_the_busiest_cgroups_are_those_that_use_it_themselves():
    before = {"/a": 1.0, "/a/b": 1.0, "/c": 5.0}
    rows = busiest_cgroups(before, {"/a": 11.0, "/a/b": 10.9, "/c": 7.0, "/d": 0.0}, 10.0)
    assert [(row.path, row.cpus) for row in rows] == [("/a/b", 0.99), ("/c", 0.2)]


def test_commands_hold_what_grew_and_those_that_ended():
    before = {1: ThreadCounters("old", 100, 10, 5, 2, 0), 2: ThreadCounters("gone", 500, 0, 1, 0, 0)}
    after = {1: ThreadCounters("old", 400, 30, 9, 3, 1), 3: ThreadCounters("new", 50, 5, 1, 0, 0)}
    ended = [Taskstats(15, 2, 2, 1, "gone", 10**9, 900, 7, 3, 1), Taskstats(15, 9, 8, 1, "gone", 1, 100, 0, 1, 0)]
    rows = {row.comm: row for row in grown(before, after, ended)}
    assert (rows["old"].run_s, rows["old"].wait_s, rows["old"].runs, rows["old"].preempted) == (
        *(pytest.approx(3e-7, abs=1e-6), pytest.approx(2e-8, abs=1e-6)),
        *(4, 1),
    )
    assert (rows["gone"].tasks, rows["gone"].ended) == (2, 2)
    assert lifetimes(ended).ended == 1, "a thread is no process"
    assert lifetimes([]) is None


@pytest.fixture
def busy():
    process = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    yield process.pid
    process.kill()
    process.wait()


@pytest.mark.parametrize("tier", [0, 1])
def test_a_process_tree_is_watched_without_any_right(busy, tier):
    profile = observe(Order(Target(pid=busy), 0.6, tier)).profile
    assert (profile.tier, profile.scope) == (tier, f"process {busy} and its descendants")
    assert profile.cpus_used > 0
    assert profile.intervals
    assert profile.cpus == os.cpu_count()
    if tier:
        assert [row.comm[:6] for row in profile.commands if row.run_s > 0] == ["python"]
        assert [row.pid for row in profile.processes] == [busy]


def test_threads_are_read_with_their_names(busy):
    [counters] = read_threads(Target(pid=busy)).values()
    assert counters.comm.startswith("python")


def test_a_process_that_is_not_there_is_refused():
    with pytest.raises(UsageError, match="there is no process"):
        observe(Order(Target(pid=4194304), 1.0, 0))
