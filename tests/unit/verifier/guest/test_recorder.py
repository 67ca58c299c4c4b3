"""The recorder: joining events with records, and a real build recorded on this machine."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from pathlib import Path

import pytest

from kernel_bpf.observe.netlink import EVENT_EXEC, EVENT_EXIT, EVENT_FORK
from schedagent.core.errors import SetupError
from schedagent.core.trials.workload import Observation
from tests.support.netlink_messages import event, taskstats
from tests.support.paths import FIXTURES
from verifier.guest import recorder
from verifier.guest.recorder import Recorder, Task, attach_stats, descendants, replay

NEEDS_ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="needs root (CAP_NET_ADMIN) to listen to the kernel")


def exit_datagram(pid: int, cpu_ns: int) -> bytes:
    def attribute(kind: int, value: bytes) -> bytes:
        return (4 + len(value)).to_bytes(2, "little") + kind.to_bytes(2, "little") + value + b"\0" * (-len(value) % 4)

    stats = taskstats(16, ac_pid=pid, ac_tgid=pid, ac_comm=b"x", cpu_run_virtual_total=cpu_ns)
    body = b"\2\1\0\0" + attribute(4, attribute(1, pid.to_bytes(4, "little")) + attribute(3, stats))
    return (16 + len(body)).to_bytes(4, "little") + (30).to_bytes(2, "little") + b"\0" * 10 + body


def test_a_pid_that_is_used_again_is_another_task():
    log = [
        (event(EVENT_FORK, 0, 0, 1, 1, 50, 50), b""),
        (event(EVENT_EXEC, 0, 1, 50, 50), b"first\0"),
        (event(EVENT_EXIT, 0, 2, 50, 50), b""),
        (event(EVENT_FORK, 0, 3, 1, 1, 50, 50), b""),
        (event(EVENT_EXEC, 0, 4, 50, 50), b"wrapper\0"),
        (event(EVENT_EXEC, 0, 5, 50, 50), b"second\0"),
    ]
    tasks, lost = replay(log)
    attach_stats(tasks, [exit_datagram(50, 7), exit_datagram(50, 8), exit_datagram(51, 9)])
    assert [(task.cmdline, task.stats.cpu_ns) for task in tasks] == [(b"first\0", 7), (b"second\0", 8)]
    assert lost == 0


def test_the_family_is_the_root_its_children_and_their_threads():
    tasks = [
        Task(9, 9, 1, 0),
        Task(10, 10, 1, 1),
        Task(11, 11, 10, 2),
        Task(12, 11, 10, 3),
        Task(13, 13, 11, 4),
        Task(14, 9, 1, 5),
        Task(11, 11, 1, 6),
        Task(15, 15, 11, 7),
    ]
    assert [(task.pid, task.forked_ns) for task in descendants(tasks, 10)] == [(10, 1), (11, 2), (12, 3), (13, 4)]


def test_a_root_that_never_forked_is_an_error():
    if os.geteuid() == 0:
        recording = Recorder()
        recording.start()
        with pytest.raises(SetupError, match=f"pid {os.getpid()}"):
            recording.stop(os.getpid())
    assert descendants([Task(9, 9, 1, 0)], 10) == []


def test_pressure_that_the_kernel_lacks_is_unknown(tmp_path, monkeypatch):
    monkeypatch.setattr(recorder, "PRESSURE", tmp_path)
    assert recorder.read_pressure() == (-1, -1, -1)
    assert recorder.growth(-1, -1) == -1
    (tmp_path / "cpu").write_text("some avg10=0.00 avg60=0.00 avg300=0.00 total=1234\nfull avg10=0 total=9\n")
    assert recorder.read_pressure() == (1234, -1, -1)
    assert recorder.growth(1000, 1234) == 234


@NEEDS_ROOT
@pytest.mark.parametrize("before", ["0\n", "1\n"])
def test_delay_accounting_is_left_as_it_was(before):
    original = recorder.DELAY_ACCOUNTING.read_text()
    try:
        recorder.DELAY_ACCOUNTING.write_text(before)
        recording = Recorder()
        assert recorder.DELAY_ACCOUNTING.read_text() == "1\n"
        recording.close()
        recording.close()
        assert recorder.DELAY_ACCOUNTING.read_text() == before
    finally:
        recorder.DELAY_ACCOUNTING.write_text(original)


def record(command: str, directory: Path) -> tuple[Observation, float]:
    """Run a command under the recorder; return what it saw and the CPU time that wait() reports."""
    recording = Recorder()
    recording.start()
    before = os.times()
    child = subprocess.Popen(["sh", "-c", command], cwd=directory)
    assert child.wait() == 0
    after = os.times()
    used = after.children_user + after.children_system - before.children_user - before.children_system
    return recording.stop(child.pid), used


@NEEDS_ROOT
@pytest.mark.skipif(not shutil.which("gcc") or not shutil.which("make"), reason="needs gcc and make")
def test_a_real_build_is_recorded_whole(tmp_path):
    project = shutil.copytree(FIXTURES / "cproject", tmp_path / "cproject", ignore=shutil.ignore_patterns("build"))
    started = time.monotonic_ns()
    observation, used_s = record("make -s -j2", project)
    took_ns = time.monotonic_ns() - started
    assert observation.lost_events == 0
    compiled = [one for one in observation.records if one.comm == "cc1"]
    assert len(compiled) == len(list(project.glob("src/*.c")))
    sources = {one.cmdline.split(b"src/")[1].split(b"\0")[0] for one in compiled}
    assert sources == {path.name.encode() for path in project.glob("src/*.c")}
    assert max(compiled, key=lambda one: one.cpu_ns).cmdline.count(b"src/kernels.c") == 1
    assert sum(one.cpu_ns for one in observation.records) / 1e9 == pytest.approx(used_s, rel=0.2)
    assert 0 < observation.wall_ns < took_ns
    assert all(0 <= one.start_ns < observation.wall_ns for one in observation.records)
    assert sum(one.run_delay_ns for one in observation.records) > 0
    samples = [runnable for _, runnable in observation.parallelism]
    assert len(samples) >= observation.wall_ns / 1e9 * 5
    assert max(samples) >= 2
    assert Observation.from_json(json.loads(json.dumps(observation.to_json()))) == observation


@NEEDS_ROOT
def test_what_outlives_the_workload_is_counted_so_far(tmp_path):
    pidfile = tmp_path / "pid"
    observation, _ = record(f"sleep 30 >/dev/null 2>&1 & echo $! > {pidfile}", tmp_path)
    pid = int(pidfile.read_text())
    os.kill(pid, 9)
    assert pid in [one.pid for one in observation.records]
    assert observation.lost_events == 0
