"""The circuit breaker's pure part, and what it is told of tasks."""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import pytest

from kernel_bpf.load.exit_info import ExitInfo
from kernel_bpf.load.running import running_build_id
from kernel_bpf.load.sched_ext import KernelState
from kernel_bpf.observe import tasks
from kernel_bpf.observe.core_scheduling import CoreScheduling
from kernel_bpf.observe.schedulers import Scheduler, stop_hint
from kernel_bpf.observe.tasks import TaskSample, Threads, Watch, all_threads, cgroup_of, cgroup_root, move_in, tree_of
from schedagent.core.deployment import End, Tree
from schedagent.core.errors import SetupError
from schedagent.core.welch import DELAY, PRESSURE, Better, Spread, spread
from schedagent.schedagentd.breaker import Bounds, KernelReading, judge_reading, judge_spreads, measures, summarise
from schedagent.schedagentd.kernel import HostKernel

RUNNING = KernelState(True, "enabled", "good", True, enable_seq=3)
NORMAL, STEPS = 0, 13


def reading(at, state=RUNNING, enabled=True, exit_info=None, asleep_s=0.0):
    return KernelReading(at + asleep_s, at, state, enabled, exit_info)


def judged(now, before=None):
    return judge_reading(reading(0), before or reading(10), now, Bounds())


class TestReadings:
    def test_all_is_well(self):
        assert judged(reading(11)) is None

    def test_one_that_is_just_ending_may_say_why_first(self):
        ending = KernelState(True, "disabling", "good", True, enable_seq=3)
        assert judged(reading(11, ending, enabled=False)) is None
        info = ExitInfo(1026, "stall", 0, "stall", "failed to run")
        assert judged(reading(12, ending, enabled=False, exit_info=info))[0] is End.STALL
        gone = KernelState(True, "disabled", enable_seq=3)
        assert judged(reading(12, gone, enabled=False))[0] is End.EXITED

    def test_events_count_as_a_rate(self):
        def counted(count):
            return KernelState(True, "enabled", "good", enable_seq=3, events={"SCX_EV_SELECT_CPU_FALLBACK": count})

        before = reading(10, counted(5000))
        assert judged(reading(20, counted(5900)), before) is None
        assert judged(reading(20, counted(6100)), before)[0] is End.ERROR_EVENTS

    def test_time_that_stands_still_is_no_division_by_zero(self):
        assert judged(reading(10)) is None


def samples(pressures, delay_s=0.001):
    at, stalled_s, turns = 0.0, 0.0, 0
    found = [TaskSample(at, stalled_s, 0.0, turns)]
    for pressure in pressures:
        at, stalled_s, turns = at + 5, stalled_s + 5 * pressure, turns + 100
        found.append(TaskSample(at, stalled_s, turns * delay_s, turns))
    return found


def judged_samples(baseline, found, bounds):
    return judge_spreads(baseline, summarise(found), measures(bounds, None))


class TestSamples:
    def test_spread(self):
        assert spread([1.0, 2.0, 3.0]) == Spread(3, 2.0, 1.0)
        assert spread([]) == Spread(0, 0.0, 0.0)

    def test_intervals_become_rates(self):
        found = summarise(samples([0.2] * STEPS, 0.003))
        assert (found[PRESSURE].count, round(found[PRESSURE].mean, 6), round(found[DELAY].mean, 6)) == (13, 0.2, 0.003)

    @pytest.mark.parametrize(
        ("before", "now", "delay_s", "end"),
        [
            (0.1, 0.1, 0.001, None),
            (0.1, 0.19, 0.001, None),  # less than the floor
            (0.1, 0.3, 0.001, End.PRESSURE),
            (0.4, 0.59, 0.001, None),  # less than the ratio
            (0.4, 0.7, 0.001, End.PRESSURE),
            (0.1, 0.1, 0.0029, None),
            (0.1, 0.1, 0.01, End.RUN_QUEUE_DELAY),
        ],
    )
    def test_margins(self, before, now, delay_s, end):
        trip = judged_samples(summarise(samples([before] * STEPS)), samples([now] * STEPS, delay_s), Bounds())
        assert (trip and trip[0]) == end

    def test_noise_is_not_worse(self):
        """The mean is far above the bound, but one outlier made it so."""
        noisy = samples([0.0] * 12 + [3.9])
        assert summarise(noisy)[PRESSURE].mean > 0.2
        assert judged_samples(summarise(samples([0.0] * STEPS)), noisy, Bounds()) is None

    def test_too_few_are_no_reason(self):
        assert judged_samples(summarise(samples([0.1] * STEPS)), samples([0.9] * 11), Bounds()) is None
        assert judged_samples({}, samples([0.9] * STEPS), Bounds()) is None


def spreads(name, value, deviation=0.0):
    return {name: Spread(12, value, deviation)}


class TestMeasures:
    def test_what_the_counters_say(self):
        """Two tasks want a CPU for all of 5 s: one of them runs, the other waits."""
        found = [
            TaskSample(0.0, 0.0, 0.0, 0, 0.0),
            TaskSample(5.0, 5.0, 5.0, 1000, 5.0),
            TaskSample(10.0, 10.0, 5.0, 1000, 5.0),
        ]
        told = summarise(found)
        assert (told["cpu_share"], told["cpu_used"].mean, told["turns_per_s"].mean) == (Spread(1, 0.5, 0.0), 0.5, 100.0)

    def test_what_nothing_tells_of_is_not_compared(self):
        told = summarise([TaskSample(0.0, None, 0.0, 0), TaskSample(5.0, None, 1.0, 10)])
        assert (told["pressure"].count, told["run_queue_delay_s"].count, told["cpu_share"].mean) == (0, 1, 0.0)

    @pytest.mark.parametrize(("now", "end"), [(0.9, None), (0.55, None), (0.5, End.CPU_SHARE), (0.0, End.CPU_SHARE)])
    def test_a_share_may_be_two_thirds_of_what_it_was(self, now, end):
        trip = judge_spreads(spreads("cpu_share", 0.81), spreads("cpu_share", now), measures(Bounds(), None))
        assert (trip and trip[0]) == end

    @pytest.mark.parametrize(
        ("better", "before", "now", "trips"),
        [
            (Better.HIGHER, 100.0, 92.0, False),
            (Better.HIGHER, 100.0, 90.0, True),
            (Better.HIGHER, 100.0, 300.0, False),
            (Better.LOWER, 100.0, 109.0, False),
            (Better.LOWER, 100.0, 111.0, True),
            (Better.LOWER, 100.0, 1.0, False),
            (Better.HIGHER, -100.0, -108.0, False),
            (Better.HIGHER, -100.0, -111.0, True),
            (None, 100.0, 1.0, False),
        ],
    )
    def test_a_workload_s_own_metric(self, better, before, now, trips):
        trip = judge_spreads(spreads("metric", before, 0.1), spreads("metric", now, 0.1), measures(Bounds(), better))
        assert (trip is not None) == trips
        noisy = judge_spreads(spreads("metric", before, 50.0), spreads("metric", now, 50.0), measures(Bounds(), better))
        assert noisy is None


class TestTrees:
    """Of real processes."""

    @pytest.fixture
    def parent(self):
        """A process with a child that has a child, both of which outlive it."""
        shell = "sh -c 'sleep 60 & echo $!; wait' & echo $!; wait"
        with subprocess.Popen(["sh", "-c", shell], stdout=subprocess.PIPE, text=True) as process:
            below = sorted(int(process.stdout.readline()) for _child in range(2))  # either may be the first to print
            yield process, below
            for pid in (*below, process.pid):
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)

    def test_descendants_and_no_others(self, parent, tmp_path):
        process, below = parent
        tree = tree_of(process.pid)
        assert sorted(Threads(tree, tmp_path).now()) == sorted([process.pid, *below])
        assert list(Threads(Tree(process.pid, tree.started + 1), tmp_path).now()) == [], "another process of that id"
        assert list(Threads(tree_of(below[1]), tmp_path).now()) == [below[1]]

    def test_orphans_that_were_seen_stay(self, parent, tmp_path):
        process, below = parent
        threads = Threads(tree_of(process.pid), tmp_path)
        seen = set(threads.now())
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        assert set(threads.now()) == set(below) == seen - {process.pid}

    def test_threads_count(self, tmp_path):
        program = "import threading, time; threading.Thread(target=time.sleep, args=(60,), daemon=True).start(); "
        words = [sys.executable, "-c", program + "print(1, flush=True); time.sleep(60)"]
        with subprocess.Popen(words, stdout=subprocess.PIPE) as process:
            process.stdout.readline()
            assert len(list(Threads(tree_of(process.pid), tmp_path).now())) == 2
            process.kill()

    def test_moving_in(self, parent, monkeypatch, tmp_path):
        monkeypatch.setattr(tasks, "SCHED_EXT", os.SCHED_IDLE)
        process, below = parent
        assert move_in(tree_of(process.pid), tmp_path) == 3
        assert {os.sched_getscheduler(pid) for pid in (process.pid, *below)} == {os.SCHED_IDLE}
        assert os.sched_getscheduler(0) == os.SCHED_OTHER

    def test_those_born_behind_the_look_are_moved_by_the_next_one(self, monkeypatch, tmp_path):
        looks = iter([[1, 2], [1, 2, 3], [1, 2, 3], [9]])
        monkeypatch.setattr(tasks.Threads, "now", lambda _threads: iter(next(looks)))
        moved = set()

        def change(thread, _before, _after):
            return not (thread in moved or moved.add(thread))

        monkeypatch.setattr(tasks, "_change", change)
        assert (move_in("/build", tmp_path), moved) == (3, {1, 2, 3})

    def test_no_such_process(self):
        assert (tree_of(2**22), cgroup_of(Tree(2**22, 1))) == (None, "")
        mine = tree_of(os.getpid())
        assert cgroup_of(mine).startswith("/")
        assert cgroup_of(Tree(mine.pid, mine.started + 1)) == ""


@pytest.fixture
def nasty():
    """A process whose name is no UTF-8 and would steer a terminal. Anybody may have one."""
    with subprocess.Popen([sys.executable, "-c", _NASTY], stdout=subprocess.PIPE) as process:
        process.stdout.readline()
        yield process.pid
        process.kill()


_NASTY = r"""
import ctypes
ctypes.CDLL(None).prctl(15, b"scx_\x1b[2J\xff\n)")
print(1, flush=True)
while True: pass
"""


class TestNamesOfOthers:
    def test_they_are_shown_without_harm(self, nasty, tmp_path):
        (tmp_path / "cgroup.threads").write_text(f"{nasty}\n")
        watch = Watch("/", 0.0, tmp_path)
        watch.sample()
        assert tasks._runnable(nasty) == f'{nasty} "scx_\\x1b[2J\ufffd )"'
        assert tree_of(nasty).pid == nasty
        found = [one for one in HostKernel(1000).schedulers() if one.pid == nasty]
        assert found == ([Scheduler("scx_\\x1b[2J\ufffd )", nasty)] if os.geteuid() == 0 else [])

    @pytest.mark.parametrize(
        ("owner", "group", "expected"),
        [
            (0, "0::/system.slice/scx.service\n", [Scheduler("scx_lavd", 7, "scx.service")]),
            (0, "0::/system.slice/scx_loader.service\n", [Scheduler("scx_lavd", 7, "scx_loader.service")]),
            (0, "1:name=systemd:/system.slice/a.slice/x@1.service/sub\n", [Scheduler("scx_lavd", 7, "x@1.service")]),
            (0, "0::/user.slice/user-1000.slice/user@1000.service/sshd.service\n", [Scheduler("scx_lavd", 7)]),
            (0, "0::/system.slice/a;b.service\n", [Scheduler("scx_lavd", 7)]),
            (1000, "0::/system.slice/scx.service\n", []),
        ],
    )
    def test_nobody_can_have_root_stop_a_service(self, tmp_path, monkeypatch, owner, group, expected):
        folder = tmp_path / "7"
        folder.mkdir()
        (folder / "comm").write_text("scx_lavd\n")
        (folder / "cgroup").write_text(group)
        real = Path.stat
        told = SimpleNamespace(st_uid=owner)
        monkeypatch.setattr(Path, "stat", lambda path, **how: told if path == folder else real(path, **how))
        monkeypatch.setattr(tasks, "PROC", tmp_path)
        assert list(HostKernel(1000).schedulers()) == expected


class TestTasks:
    """On this very machine; SCHED_IDLE stands in for SCHED_EXT, which a kernel without sched_ext refuses."""

    @pytest.fixture
    def sleeper(self):
        process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
        yield process.pid
        process.kill()
        process.wait()

    def test_threads_of_the_machine_and_of_a_cgroup(self, sleeper):
        assert {os.getpid(), sleeper} <= set(Threads("", cgroup_root()).now())
        assert list(Threads("/there/is/none", cgroup_root()).now()) == []

    def test_moving_in_and_out(self, sleeper, monkeypatch, tmp_path):
        folder = tmp_path / "build" / "canary"
        folder.mkdir(parents=True)
        (tmp_path / "build" / "cgroup.threads").write_text("")
        (folder / "cgroup.threads").write_text(f"{sleeper}\n999999999\n")
        monkeypatch.setattr(tasks, "SCHED_EXT", os.SCHED_IDLE)
        os.setpriority(os.PRIO_PROCESS, sleeper, 7)
        assert move_in("/build", tmp_path) == 1
        assert os.sched_getscheduler(sleeper) == os.SCHED_IDLE
        assert move_in("/build", tmp_path) == 0
        monkeypatch.setattr(tasks.Threads, "now", lambda _threads: iter([sleeper]))
        assert tasks.move_out() == 1
        assert (os.sched_getscheduler(sleeper), os.getpriority(os.PRIO_PROCESS, sleeper)) == (os.SCHED_OTHER, 7)

    def test_tasks_of_other_classes_are_left_alone(self, sleeper, monkeypatch, tmp_path):
        os.sched_setscheduler(sleeper, os.SCHED_BATCH, os.sched_param(0))
        (tmp_path / "cgroup.threads").write_text(f"{sleeper}\n")
        assert move_in("/", tmp_path) == 0

    def test_waits_are_counted(self, tmp_path):
        hogs = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(2 * (os.cpu_count() or 1))]
        try:
            (tmp_path / "cgroup.threads").write_text("".join(f"{hog.pid}\n" for hog in hogs))
            watch = Watch("/", 60.0, tmp_path)
            first = watch.sample()
            time.sleep(0.5)
            second = watch.sample()
            assert second.runs > first.runs
            assert second.delay_s - first.delay_s > 0.1
            assert 0.0 < second.ran_s - first.ran_s < 2 * (os.cpu_count() or 1)
            assert second.starved == ()
        finally:
            for hog in hogs:
                hog.kill()
                hog.wait()

    def test_a_runnable_task_that_does_not_run_is_starved(self, tmp_path, monkeypatch):
        (tmp_path / "cgroup.threads").write_text("41\n42\n43\n")
        monkeypatch.setattr(tasks, "schedstat", lambda thread: (100, 5, 7) if thread != 43 else None)
        monkeypatch.setattr(tasks, "_runnable", lambda thread: "42 (cc1)" if thread == 42 else "")
        watch = Watch("/", 0.05, tmp_path)
        assert (watch.sample().starved, watch.sample().starved) == ((), ())
        time.sleep(0.06)
        assert watch.sample().starved == ("42 (cc1)",)

    @pytest.fixture
    def crowded(self, monkeypatch):
        """A machine of 10,000 threads, each of which runs a little between two samples; and a clock."""
        crowd = SimpleNamespace(threads=range(1, 10_001), runs=dict.fromkeys(range(1, 10_001), 0), read=[], now=0.0)
        monkeypatch.setattr(tasks.Threads, "now", lambda _threads: iter(crowd.threads))
        monkeypatch.setattr(tasks.time, "monotonic", lambda: crowd.now)
        monkeypatch.setattr(tasks, "_runnable", lambda thread: f'{thread} "cc1"')

        def schedstat(thread):
            crowd.read.append(thread)
            return crowd.runs[thread] * 1000, crowd.runs[thread] * 500, crowd.runs[thread]

        monkeypatch.setattr(tasks, "schedstat", schedstat)
        return crowd

    def sample(self, crowd, watch, but=()):
        crowd.now += 5.0
        crowd.read.clear()
        for thread in crowd.threads:
            crowd.runs[thread] += thread not in but
        return watch.sample()

    def test_every_thread_has_its_turn(self, crowded, tmp_path):
        watch, before, pairs = Watch("/x", 3.0, tmp_path, rotates=True), set(), set()
        for _round in range(7):
            self.sample(crowded, watch)
            assert len(crowded.read) <= tasks.MOST_WATCHED
            pairs |= before & set(crowded.read)
            before = set(crowded.read)
        assert pairs == set(crowded.threads), "each was read at two samples one after the other"

    @pytest.mark.parametrize("starvation_s", [3.0, 12.0])
    def test_whoever_starves_is_found_wherever_it_is(self, crowded, tmp_path, starvation_s):
        watch, starved, rounds = Watch("/x", starvation_s, tmp_path, rotates=True), (), 0
        while not starved and rounds < 10:
            starved, rounds = self.sample(crowded, watch, but={9_999}).starved, rounds + 1
        assert starved == ('9999 "cc1"',)

    def test_what_is_measured_in_turn_is_what_all_of_them_show(self, crowded, tmp_path):
        watch = Watch("/x", 3.0, tmp_path, rotates=True)
        samples = [self.sample(crowded, watch) for _round in range(9)]
        for first, second in itertools.pairwise(samples):
            assert second.runs - first.runs == tasks.MOST_WATCHED // 2
            assert second.delay_s - first.delay_s == pytest.approx((second.runs - first.runs) * 500e-9)

    def test_of_the_whole_machine_the_kernel_s_own_sums_count(self, monkeypatch, tmp_path):
        """They hold threads that come and go between two samples, too."""
        (tmp_path / "schedstat").write_text(
            "version 17\ntimestamp 4295\ncpu0 0 0 9 8 7 6 111 2000000000 30\ndomain0 MC 3 1 2 3\n"
            "cpu1 0 0 9 8 7 6 222 1000000000 12\ncpu10 0 0 9 8 7 6 1 0 0\n"
        )
        (tmp_path / "stat").write_text("cpu  100 20 30 4000 5 6 7 0 0 0\ncpu0 1 1 1 1\n")
        monkeypatch.setattr(tasks, "PROC", tmp_path)
        sample = Watch("", 3.0, tmp_path, rotates=True).sample()
        assert (sample.delay_s, sample.runs, sample.ran_s) == (3.0, 42, 150 / os.sysconf("SC_CLK_TCK"))
        (tmp_path / "schedstat").unlink()
        assert Watch("", 3.0, tmp_path, rotates=True).sample().runs == 0, "then those of its threads do"

    def test_the_sums_of_this_machine_grow(self):
        before = tasks.machine_sums()
        if before is None:
            assert not Path("/proc/schedstat").exists()
            return
        subprocess.run([sys.executable, "-c", "sum(range(3_000_000))"], check=True)
        after = tasks.machine_sums()
        assert (after[1] > before[1], after[2] > before[2]) == (True, True)

    def test_pressure_of_the_machine_and_of_nothing(self, tmp_path):
        assert Watch("/none", 1.0, tmp_path).sample().stalled_s is None
        assert Watch(Tree(os.getpid(), 1), 1.0, tmp_path).sample().stalled_s is None
        (tmp_path / "g").mkdir()
        (tmp_path / "g" / "cpu.pressure").write_text("some avg10=0.00 avg60=0.00 avg300=0.00 total=2500000\n")
        assert Watch("/g", 1.0, tmp_path).sample().stalled_s == 2.5


class TestRunningKernel:
    def test_its_build_id(self):
        assert len(running_build_id()) == 40

    def test_notes_without_one(self, tmp_path):
        for content in (b"", b"\x04\0\0\0\x04\0\0\0\x05\0\0\0GNU\0abcd", b"\xff" * 40):
            (tmp_path / "notes").write_bytes(content)
            with pytest.raises(SetupError, match="names no build id"):
                running_build_id(tmp_path / "notes")

    def test_nobody_is_core_scheduled_here(self):
        assert (CoreScheduling().anywhere(), CoreScheduling().turn()) == (None, None)

    def test_a_thread_that_is_core_scheduled_is_found_beside_its_process(self):
        """The first thread of a process may have no cookie, and another one yes."""
        done, ready = threading.Event(), threading.Event()
        second = threading.Thread(target=lambda: (ready.set(), done.wait()))
        second.start()
        ready.wait()
        cookies = CoreScheduling(lambda thread: thread == second.native_id)
        assert cookies.anywhere() == second.native_id
        assert any(cookies.turn(most=100) == second.native_id for _turn in range(2 + len(all_threads()) // 100))
        done.set()
        second.join()

    def test_each_thread_has_its_turn_and_a_kernel_without_is_not_asked_on(self, monkeypatch):
        asked = []
        monkeypatch.setattr(tasks, "all_threads", lambda: [*range(10, 0, -1)])
        cookies = CoreScheduling(lambda thread: asked.append(thread) or 0)
        for _turn in range(4):
            assert cookies.turn(most=3) is None
        assert asked == [*range(1, 11), 1, 2]

        def absent(thread):
            asked.append(thread)
            raise OSError(19, "no SMT")

        asked.clear()
        assert (CoreScheduling(absent).anywhere(), len(asked)) == (None, 1)

    def test_what_to_stop(self):
        service, bare = Scheduler("scx_lavd", 7, "scx.service"), Scheduler("scx_x", 8)
        assert stop_hint((service, bare)) == "systemctl disable --now scx.service"
        assert stop_hint((bare,)) == 'stop "scx_x", process 8'
        assert "scx_loader.service" in stop_hint(())
