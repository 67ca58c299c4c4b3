"""What watching a service shows, in the words of planning."""

from __future__ import annotations

import os
import signal

import pytest

from agents.observation import build_profile
from schedagent.core.errors import SetupError
from schedagent.core.trials.workload import Observation, TaskRecord, WorkloadClass
from schedagent.experiment import profile
from schedagent.observing.scope import Target
from tests.support.running_service import service
from tests.support.scripted_lab import long_tail

MS = 1_000_000


def test_a_process_is_watched_as_it_runs():
    with service() as process:
        seen = profile.observe(Target(pid=process.pid), 0.6)
    [command] = seen.commands
    assert command.comm.startswith("python")
    assert 0 < seen.cpu_s < 0.9
    assert seen.wall_s == pytest.approx(0.6, rel=0.5)
    assert seen.commands[0].voluntary_switches > 10, "it sleeps between two pieces of work"


def test_what_does_not_run_is_no_service():
    with service() as process:
        os.kill(process.pid, signal.SIGSTOP)
        os.waitid(os.P_PID, process.pid, os.WSTOPPED)  # it runs until the signal is delivered
        with pytest.raises(SetupError, match="ran in 1 s, so there is nothing to compare"):
            profile.observe(Target(pid=process.pid), 0.6)


def test_nothing_that_is_only_true_of_work_that_ends_is_kept():
    finite = build_profile(long_tail())
    seen = profile._endless(finite)
    assert (finite.kind, seen.kind) == (WorkloadClass.BATCH_LONG_TAIL, WorkloadClass.MIXED)
    assert finite.predicted_ratio < 1 == seen.predicted_ratio
    assert len(seen.evidence) == 1
    assert "longest first" not in seen.evidence[0]


@pytest.mark.parametrize(("waited", "kind"), [(5, WorkloadClass.LATENCY_SENSITIVE), (1, WorkloadClass.SERIAL)])
def test_a_service_that_waits_beside_others_is_no_serial_work(waited, kind):
    record = TaskRecord(7, 7, 1, "api", b"api\0", 0, 1000 * MS, 10 * MS, waited * MS, 90, 2)
    seen = Observation(1000 * MS, 2, (record,), (), -1, -1, -1, 0)
    assert build_profile(seen).kind is WorkloadClass.SERIAL
    assert profile._endless(build_profile(seen)).kind is kind
