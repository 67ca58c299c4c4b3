"""The probe of work and switches, run here as it runs on the host."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from verifier.guest import agent, costs
from verifier.lab.costs import probe_host
from verifier.microvm import jobs


def test_the_guest_knows_the_job() -> None:
    assert jobs.JOBS["MeasureCosts"] is jobs.MeasureCosts
    assert "MeasureCosts" in agent.HANDLERS


def test_a_ping_pong_switches_twice_in_each_round() -> None:
    used = costs.in_child(lambda: pinned(lambda: costs.ping_pong(100)))()
    assert used[0] > 0
    assert used[1] >= 2 * 100 - 2, "each read waits for the partner, but for the first and the last perhaps"


def pinned(work: Callable[[], Any]) -> Any:
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    return work()


def test_the_same_calls_alone_switch_hardly_ever() -> None:
    used = costs.in_child(lambda: costs.used(lambda: costs.talk_to_oneself(100)))()
    assert used[1] < 100


def test_the_probe_leaves_nothing_behind() -> None:
    before, files = os.sched_getaffinity(0), set(os.listdir("/proc/self/fd"))  # noqa: PTH208
    others = children()
    answer = costs.measure()
    assert answer.work_ns > 0
    assert os.sched_getaffinity(0) == before
    assert set(os.listdir("/proc/self/fd")) == files  # noqa: PTH208
    assert children() == others


def children() -> set[str]:
    """The pids of this process's children, which other tests may have left as well."""
    lists = [path.read_text() for path in Path("/proc/self/task").glob("*/children")]
    return {pid for text in lists for pid in text.split()}


def test_a_child_that_dies_is_an_error_not_a_figure() -> None:
    with pytest.raises(ChildProcessError, match="without a result"):
        costs.in_child(lambda: os._exit(3))()


def test_the_host_is_measured_with_the_interpreter_of_the_guest() -> None:
    answer = probe_host()
    assert answer.work_ns > 0
