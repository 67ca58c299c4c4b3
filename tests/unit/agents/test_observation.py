"""Profiles and classification, on runs made up record by record."""

from __future__ import annotations

from dataclasses import replace

import pytest

from agents.observation import (
    HISTORY_LIMIT,
    Job,
    build_profile,
    fair_makespan,
    longest_first_bound,
    observe,
    working_tasks,
)
from schedagent.core.errors import SetupError
from schedagent.core.policies.identity import cmdline_identity, comm_identity
from schedagent.core.trials.trial import DEFAULT_ARM, Sample
from schedagent.core.trials.usage import Usage
from schedagent.core.trials.workload import Observation, TaskRecord, WorkloadClass, WorkloadCommand

MS = 1_000_000


class Run:
    """Makes records one by one."""

    def __init__(self, cpus: int = 2) -> None:
        self.cpus = cpus
        self.records: list[TaskRecord] = []

    def task(self, comm, cpu_ms, *, args=(), start_ms=0, took_ms=None, delay_ms=0, sleeps=0, preempted=0, parent=1):
        pid = 100 + len(self.records)
        took_ms = cpu_ms + delay_ms if took_ms is None else took_ms
        line = b"".join(word.encode() + b"\0" for word in (comm, *args)) if args else b""
        times = [int(value * MS) for value in (start_ms, took_ms, cpu_ms, delay_ms)]
        self.records.append(TaskRecord(pid, pid, parent, comm, line, *times, sleeps, preempted))
        return pid

    def observation(self, wall_ms=None) -> Observation:
        end = max(record.start_ns + record.elapsed_ns for record in self.records)
        wall_ns = end if wall_ms is None else wall_ms * MS
        return Observation(wall_ns, self.cpus, tuple(self.records), ((5 * MS, 3),), 4_000_000, -1, 0, 0)

    def profile(self, wall_ms=None, *, kappa=1.0):
        return build_profile(self.observation(wall_ms), kappa=kappa)

    def stretched(self, kappa: int) -> Run:
        """The same run on a machine on which all work takes so many times as long."""
        slow = Run(self.cpus)
        times = ("start_ns", "elapsed_ns", "cpu_ns", "run_delay_ns")
        slow.records = [
            replace(record, **{name: getattr(record, name) * kappa for name in times}) for record in self.records
        ]
        return slow


def long_tail_run() -> Run:
    run = Run()
    shell = run.task("batch.sh", 3, took_ms=2110, sleeps=12)
    for _ in range(9):
        run.task("spin", 200, args=["200"], took_ms=1200, delay_ms=1000, preempted=50, parent=shell)
    run.task("spin", 1400, args=["1400"], took_ms=2100, delay_ms=700, preempted=90, parent=shell)
    return run


def build_run(jobs: int = 20, heavy_ms: float = 60) -> Run:
    run = Run()
    make = run.task("make", 10, took_ms=1500, sleeps=40)
    for number in range(jobs):
        start = number * 60
        cpu = heavy_ms if number == jobs - 1 else 50
        driver = run.task("cc", 2, start_ms=start, took_ms=cpu + 20, sleeps=4, parent=make)
        run.task("cc1", cpu, args=["-o", f"/tmp/{number}", f"{number}.c"], start_ms=start, delay_ms=9, parent=driver)
        run.task("as", 4, args=[f"/tmp/{number}"], start_ms=start + cpu, delay_ms=3, parent=driver)
    return run


@pytest.mark.parametrize(("shorts", "multiple", "cpus"), [(9, 7, 2), (39, 10, 4), (5, 3, 3)])
def test_fair_sharing_and_longest_first_agree_with_the_closed_forms(shorts, multiple, cpus):
    jobs = [Job(0, 1000)] * shorts + [Job(0, 1000 * multiple)]
    assert fair_makespan(jobs, cpus) == pytest.approx(1000 * ((shorts + 1) / cpus + multiple - 1))
    assert longest_first_bound(jobs, cpus) == pytest.approx(1000 * max(multiple, (shorts + multiple) / cpus))


def test_a_job_that_comes_late_bounds_the_makespan():
    jobs = [Job(0, 100), Job(500, 300)]
    assert fair_makespan(jobs, 2) == longest_first_bound(jobs, 2) == 800
    assert fair_makespan([], 2) == longest_first_bound([], 2) == 0
    assert fair_makespan([Job(0, 100), Job(50, 100)], 1) == pytest.approx(200)


def test_a_long_tail_is_recognised_with_its_figures():
    profile = long_tail_run().profile()
    assert profile.kind is WorkloadClass.BATCH_LONG_TAIL
    assert "spin 1400" in profile.evidence[0]
    assert "1.40 s of CPU time, 7.0 times the median of the 9 tasks" in profile.evidence[0]
    assert "about 2.20 s" in profile.evidence[0]
    assert "at least 1.60 s" in profile.evidence[0]
    assert profile.predicted_ratio == pytest.approx(1 - 0.6 / 2.2, abs=0.01)
    assert profile.wall_s == pytest.approx(2.11)
    assert profile.cpu_s == pytest.approx(3.203)
    assert profile.parallelism == ((0.005, 3),)
    assert (profile.psi_cpu_some_s, profile.psi_io_some_s, profile.psi_memory_some_s) == (4.0, -1.0, 0.0)


def test_a_batch_whose_tasks_start_slowly_is_still_a_batch():
    """As seen in an emulated machine: programs read over 9p take longer to start than to run."""
    run = Run()
    shell = run.task("batch.sh", 215, start_ms=375, took_ms=2920, sleeps=16)
    run.task("dirname", 180, start_ms=468, took_ms=229, parent=shell)
    for number in range(9):
        run.task("spin", 200, args=["200"], start_ms=735 + 20 * number, took_ms=900, delay_ms=700, parent=shell)
    run.task("spin", 1400, args=["1400"], start_ms=934, took_ms=2347, delay_ms=840, preempted=88, parent=shell)
    assert len(run.records) >= 12
    assert run.profile().kind is WorkloadClass.BATCH_LONG_TAIL


def test_an_even_batch_has_no_tail():
    run = Run()
    for _ in range(10):
        run.task("spin", 300, args=["300"], took_ms=1500, delay_ms=1200, preempted=60)
    profile = run.profile()
    assert profile.kind is WorkloadClass.CPU_BATCH
    assert profile.predicted_ratio == 1.0


def test_a_long_task_with_a_cpu_of_its_own_is_no_tail():
    run = Run(cpus=12)
    for _ in range(9):
        run.task("spin", 200, args=["200"], preempted=3)
    run.task("spin", 1400, args=["1400"], preempted=3)
    profile = run.profile()
    assert profile.predicted_ratio == 1.0
    assert profile.kind is not WorkloadClass.BATCH_LONG_TAIL


def test_what_starts_after_the_longest_task_has_ended_does_not_hide_the_tail():
    run = long_tail_run()
    run.task("link", 300, args=["all"], start_ms=2110)
    assert run.profile().predicted_ratio == pytest.approx(1 - 0.6 / 2.41, abs=0.01)


def test_a_build_is_told_by_its_shape_not_by_names():
    named, renamed = build_run(), build_run()
    renamed.records = [TaskRecord(**{**vars(one), "comm": f"x{one.comm}"}) for one in renamed.records]
    for run in (named, renamed):
        profile = run.profile()
        assert profile.kind is WorkloadClass.PARALLEL_BUILD
        assert "61 processes" in profile.evidence[0]
        assert "3 levels deep" in profile.evidence[0]
        assert profile.predicted_ratio == 1.0


def test_a_build_may_have_a_long_tail_too():
    run = Run()
    make = run.task("make", 10, took_ms=1500, sleeps=40)
    for number in range(14):
        cpu = 1000 if number == 7 else 60
        driver = run.task("cc", 2, start_ms=5, took_ms=600, sleeps=4, parent=make)
        run.task("cc1", cpu, args=[f"{number}.c"], start_ms=6, took_ms=max(500, cpu * 1.4), delay_ms=400, parent=driver)
        run.task("as", 3, args=[f"{number}.s"], start_ms=510, delay_ms=9, parent=driver)
    profile = run.profile()
    assert profile.kind is WorkloadClass.PARALLEL_BUILD
    assert profile.predicted_ratio < 0.9
    assert any("cc1 7.c" in sentence for sentence in profile.evidence)


def latency_run() -> Run:
    run = Run()
    for _ in range(4):
        run.task("worker", 100, args=["w"], took_ms=2000, delay_ms=200, sleeps=800, preempted=20)
    for _ in range(4):
        run.task("hog", 800, args=["h"], took_ms=2000, delay_ms=1100, preempted=300)
    return run


def sleepy_batch_run() -> Run:
    """On hardware these sleep too often for a batch: every 12 ms of CPU time."""
    run = Run()
    for _ in range(6):
        run.task("crunch", 300, args=["c"], took_ms=1500, delay_ms=1100, sleeps=25, preempted=60)
    return run


@pytest.mark.parametrize("make_run", [long_tail_run, build_run, latency_run, sleepy_batch_run])
def test_an_emulated_machine_sees_the_same_kind_of_work(make_run):
    """Its time is stretched: what wakes up 400 times a second on hardware does so 20 times a second there."""
    run, kappa = make_run(), 20
    assert run.stretched(kappa).profile(kappa=kappa).kind is run.profile().kind


def test_without_the_stretch_an_emulated_machine_saw_another_kind():
    assert latency_run().stretched(40).profile().kind is not WorkloadClass.LATENCY_SENSITIVE
    assert latency_run().stretched(40).profile(kappa=40).kind is WorkloadClass.LATENCY_SENSITIVE
    assert sleepy_batch_run().profile().kind is not WorkloadClass.CPU_BATCH
    assert sleepy_batch_run().stretched(20).profile().kind is WorkloadClass.CPU_BATCH


def test_a_latency_sensitive_workload_wakes_often_and_waits():
    profile = latency_run().profile()
    assert profile.kind is WorkloadClass.LATENCY_SENSITIVE
    assert "4 tasks woke up 3200 times, ran 0.12 ms each time and waited 0.25 ms" in profile.evidence[0]


def test_serial_work_leaves_nothing_to_decide():
    run = Run()
    run.task("one", 900, args=["x"], took_ms=1000, sleeps=3)
    profile = run.profile()
    assert profile.kind is WorkloadClass.SERIAL
    assert "cannot help" in profile.evidence[0]


def test_what_fits_no_rule_is_mixed_and_says_what_was_seen():
    run = Run()
    for _ in range(6):
        run.task("half", 500, args=["h"], took_ms=1000, delay_ms=100, sleeps=30, preempted=200)
    profile = run.profile()
    assert profile.kind is WorkloadClass.MIXED
    assert "3.00 s of CPU time" in profile.evidence[-1]


def test_shells_with_negligible_cpu_are_not_working_tasks():
    assert {record.comm for record in working_tasks(long_tail_run().records)} == {"spin"}


def test_tables_are_by_command_name_and_sum_up():
    profile = long_tail_run().profile()
    spin, shell = profile.commands
    assert (spin.comm, spin.count, spin.identity) == ("spin", 10, comm_identity("spin"))
    assert (spin.cpu_ns_p50, spin.cpu_ns_max, spin.cpu_ns_total) == (200 * MS, 1400 * MS, 3200 * MS)
    assert spin.run_delay_ns_total == 9700 * MS
    assert spin.run_delay_ns_max == 1000 * MS
    assert spin.involuntary_switches == 540
    assert spin.burst_ns_mean == 3200 * MS // 550
    assert shell.comm == "batch.sh"


def test_command_lines_have_histories_of_their_own_only_where_they_differ_in_cost():
    profile = long_tail_run().profile()
    rows = {row.identity: row for row in profile.histories}
    assert rows[cmdline_identity(b"spin\x001400\0")].cpu_ns_p50 == 1400 * MS
    assert rows[cmdline_identity(b"spin\x00200\0")].count == 9
    assert rows[comm_identity("spin")].count == 10, "the fall-back for a command line never seen"
    even = Run()
    for number in range(10):
        even.task("spin", 300, args=[str(number)], took_ms=1500, delay_ms=1200)
    assert [row.identity for row in even.profile().histories] == [comm_identity("spin")]


def test_random_arguments_do_not_split_a_history():
    run = Run()
    for number, cpu in enumerate((100, 300, 500)):
        run.task("as", cpu, args=[f"/tmp/cc{number}.s"], delay_ms=500)
    assert len(run.profile().histories) == 1


def test_histories_are_capped_largest_first():
    run = Run()
    for number in range(HISTORY_LIMIT + 50):
        run.task("cc1", 10 + number, args=[f"{number}.c"], delay_ms=50)
    histories = run.profile().histories
    assert len(histories) == HISTORY_LIMIT
    totals = [row.cpu_ns_total for row in histories]
    assert totals == sorted(totals, reverse=True)
    assert cmdline_identity(b"cc1\x000.c\0") not in {row.identity for row in histories}


def test_a_recording_without_tasks_is_an_error():
    with pytest.raises(SetupError, match="no task"):
        build_profile(Observation(1, 2, (), (), -1, -1, -1, 3))


def test_lost_events_stay_visible():
    run = long_tail_run().observation()
    assert build_profile(Observation(**{**vars(run), "lost_events": 3})).lost_events == 3


def test_observe_returns_the_sample_of_the_recorded_run_and_says_what_is_to_know_of_it():
    sample = Sample(DEFAULT_ARM, 4.0, 4_000 * MS, 5_000 * MS, 0, "now", 1, usage=Usage(1, 1, left_behind=("server",)))

    class Lab:
        def observe(self, _workload):
            return sample, long_tail_run().observation()

    words: list[str] = []
    observed, profile = observe(Lab(), WorkloadCommand("./batch", "/"), words.append)
    assert observed is sample
    assert profile.kind is WorkloadClass.BATCH_LONG_TAIL
    assert ["server" in text for text in words] == [True]
