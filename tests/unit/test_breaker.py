"""The circuit breaker's pure part, and what it is told of tasks."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import pytest

from kernel_bpf.exit_info import ExitInfo
from kernel_bpf.running import core_scheduled_process, running_build_id
from kernel_bpf.sched_ext import KernelState
from schedagent.core.errors import SetupError
from schedagent.schedagentd import tasks
from schedagent.schedagentd.breaker import (
    DELAY,
    PRESSURE,
    Bounds,
    Reading,
    judge_reading,
    judge_samples,
    spread,
    summarise,
)
from schedagent.schedagentd.deployment import End, Spread
from schedagent.schedagentd.kernel import stop_hint
from schedagent.schedagentd.tasks import Sample, Watch, cgroup_root, move_in, threads_of

RUNNING = KernelState(True, "enabled", "good", True, enable_seq=3)
NORMAL, STEPS = 0, 13


def reading(at, state=RUNNING, enabled=True, exit_info=None, asleep_s=0.0):
    return Reading(at + asleep_s, at, state, enabled, exit_info)


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
    found = [Sample(at, stalled_s, 0.0, turns)]
    for pressure in pressures:
        at, stalled_s, turns = at + 5, stalled_s + 5 * pressure, turns + 100
        found.append(Sample(at, stalled_s, turns * delay_s, turns))
    return found


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
        trip = judge_samples(summarise(samples([before] * STEPS)), samples([now] * STEPS, delay_s), Bounds())
        assert (trip and trip[0]) == end

    def test_noise_is_not_worse(self):
        """The mean is far above the bound, but one outlier made it so."""
        noisy = samples([0.0] * 12 + [3.9])
        assert summarise(noisy)[PRESSURE].mean > 0.2
        assert judge_samples(summarise(samples([0.0] * STEPS)), noisy, Bounds()) is None

    def test_too_few_are_no_reason(self):
        assert judge_samples(summarise(samples([0.1] * STEPS)), samples([0.9] * 11), Bounds()) is None
        assert judge_samples({}, samples([0.9] * STEPS), Bounds()) is None


class TestTasks:
    """On this very machine; SCHED_IDLE stands in for SCHED_EXT, which a kernel without sched_ext refuses."""

    @pytest.fixture
    def sleeper(self):
        process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
        yield process.pid
        process.kill()
        process.wait()

    def test_threads_of_the_machine_and_of_a_cgroup(self, sleeper):
        assert {os.getpid(), sleeper} <= set(threads_of("", cgroup_root()))
        assert list(threads_of("/there/is/none", cgroup_root())) == []

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
        monkeypatch.setattr(tasks, "threads_of", lambda _cgroup, _root: iter([sleeper]))
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
            assert second.turns > first.turns
            assert second.delay_s - first.delay_s > 0.1
            assert second.starved == ()
        finally:
            for hog in hogs:
                hog.kill()
                hog.wait()

    def test_a_runnable_task_that_does_not_run_is_starved(self, tmp_path, monkeypatch):
        (tmp_path / "cgroup.threads").write_text("41\n42\n43\n")
        monkeypatch.setattr(tasks, "_schedstat", lambda thread: (100, 5, 7) if thread != 43 else None)
        monkeypatch.setattr(tasks, "_runnable", lambda thread: "42 (cc1)" if thread == 42 else "")
        watch = Watch("/", 0.05, tmp_path)
        assert (watch.sample().starved, watch.sample().starved) == ((), ())
        time.sleep(0.06)
        assert watch.sample().starved == ("42 (cc1)",)

    def test_pressure_of_the_machine_and_of_nothing(self, tmp_path):
        assert Watch("/none", 1.0, tmp_path).sample().stalled_s == 0.0
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
        assert core_scheduled_process() is None

    def test_what_to_stop(self):
        assert stop_hint(("scx_lavd (process 7 of scx.service)", "scx_x (process 8)")) == (
            "systemctl disable --now scx.service"
        )
        assert stop_hint(("scx_x (process 8)",)) == "stop scx_x (process 8)"
        assert "scx_loader.service" in stop_hint(())
