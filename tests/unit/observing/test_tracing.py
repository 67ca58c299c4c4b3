"""What the probe counted, as sections: who is latency-critical, what it waits for, who wakes it, and how long."""

from __future__ import annotations

import pytest

from kernel_bpf.observe.sched_probe import PAGE_FAULT
from schedagent.observing.tracing import (
    call_name,
    class_of,
    class_rows,
    command_rows,
    critical_threads,
    distribution,
    lifetimes,
    wakeup_rows,
)
from tests.support.observed_host import histogram, ping_pong


def test_latency_critical_threads_are_named_with_what_they_wait_for_and_who_wakes_them():
    clock, echo = sorted(critical_threads(ping_pong(), 10.0), key=lambda thread: thread.tid)
    assert (clock.comm, clock.waits_in, clock.woken_by, clock.woken_by_tid) == (
        "clock",
        "clock_nanosleep",
        "interrupt",
        0,
    )
    assert (clock.wakeups_per_s, clock.burst_us) == (200.0, 10.0)
    assert (clock.waits_share, clock.woken_share) == (pytest.approx(2 / 3, abs=1e-3), pytest.approx(2 / 3, abs=1e-3))
    assert (echo.comm, echo.waits_in, echo.woken_by, echo.woken_by_tid) == ("echo", "read", "clock", 11)
    assert (echo.woken_share, echo.wakes_per_s) == (1.0, 100.0)


def test_what_computes_sleeps_long_or_is_the_kernel_s_is_not_critical():
    names = {thread.comm for thread in critical_threads(ping_pong(), 10.0)}
    assert names == {"clock", "echo"}
    assert critical_threads(ping_pong(), 10_000.0) == (), "less than once a second"


def test_commands_hold_those_that_live_and_those_that_ended():
    rows = {row.comm: row for row in command_rows(ping_pong())}
    hog = rows["hog"]
    assert (hog.tasks, hog.ended, hog.run_s, hog.runs) == (4, 3, 10.0, 430)
    assert next(iter(rows)) == "hog", "most CPU time first"


def test_classes():
    rows = {row.name: row for row in class_rows(ping_pong())}
    assert set(rows) == {"normal", "kernel"}
    assert rows["normal"].tasks == 6
    assert rows["normal"].woken.samples == 2000
    assert [class_of(policy, False) for policy in (0, 1, 2, 3, 5, 6, 7, 9)] == [
        *("normal", "real-time", "real-time", "batch", "idle", "deadline", "sched_ext", "other")
    ]


def test_quantiles_are_interpolated_in_their_bucket():
    spread = distribution(histogram(b4=50, b20=50))  # 4 to 6 us, 1024 to 1536 us
    assert (spread.samples, spread.p50_us) == (100, 6.0)
    assert 1500 < spread.p99_us < 1536
    assert distribution(histogram()).p50_us == -1.0


def test_lives_are_in_seconds():
    lived = lifetimes(ping_pong())
    assert (lived.ended, lived.p50_s) == (3, pytest.approx(0.011))
    assert lived.p95_s == pytest.approx(0.0454, abs=0.005)


def test_who_wakes_whom_by_command():
    rows = [(row.waker, row.wakee, row.count) for row in wakeup_rows(ping_pong())]
    assert rows == [("interrupt", "clock", 1000), ("clock", "echo", 1000), ("echo", "clock", 500)]


def test_names_of_system_calls():
    assert [call_name(number) for number in (202, PAGE_FAULT, 400)] == ["futex", "page fault", "system call 400"]
