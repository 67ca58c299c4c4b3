"""What a run used: sums of exit records, without what was left behind and without the kernel's own threads."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from kernel_bpf.observe.netlink import ReceiveBuffer, Taskstats, decode_taskstats, exit_record
from schedagent.core.trials.usage import CommandUsage
from tests.support.netlink_messages import taskstats
from verifier.guest import usage as counted
from verifier.guest.usage import (
    Accounting,
    Ending,
    Group,
    Idleness,
    Layer,
    Leftovers,
    by_command,
    descends,
    filled,
    process_cpu_ns,
    since,
    without,
    workload_tasks,
)

NEEDS_ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="needs root (CAP_NET_ADMIN) to listen to the kernel")
MIB = 1 << 20


def task(pid: int, ppid: int, comm: str = "x", cpu_ns: int = 1, voluntary: int = 1) -> Taskstats:
    return Taskstats(16, pid, pid, ppid, comm, 10, cpu_ns, 2, voluntary, 3)


def record(pid: int, ppid: int, comm: bytes = b"cc") -> bytes:
    def attribute(kind: int, value: bytes) -> bytes:
        return (4 + len(value)).to_bytes(2, "little") + kind.to_bytes(2, "little") + value + b"\0" * (-len(value) % 4)

    stats = taskstats(16, ac_pid=pid, ac_tgid=pid, ac_ppid=ppid, ac_comm=comm, cpu_run_virtual_total=7, nvcsw=2)
    body = b"\2\1\0\0" + attribute(4, attribute(1, pid.to_bytes(4, "little")) + attribute(3, stats))
    return (16 + len(body)).to_bytes(4, "little") + (30).to_bytes(2, "little") + b"\0" * 10 + body


def test_threads_of_the_kernel_are_not_the_workloads():
    log = [record(50, 1), record(51, counted.KTHREADD, b"kworker/0:1"), record(52, 50)]
    assert [stats.pid for stats in workload_tasks(log)] == [50, 52]
    assert decode_taskstats(exit_record(log[0])).cpu_ns == 7


def test_commands_are_summed_by_name_most_cpu_time_first_and_rare_ones_together():
    tasks = [task(1, 0, "cc", 50), task(2, 0, "sh", 5), task(3, 0, "cc", 60), task(4, 0, "rm", 1), task(5, 0, "ls", 2)]
    assert by_command(tasks, limit=2) == (
        CommandUsage("cc", 2, 110, 4, 2, 6),
        CommandUsage("sh", 1, 5, 2, 1, 3),
        CommandUsage("", 2, 3, 4, 2, 6),
    )
    assert by_command([]) == ()


def test_what_descends_from_what_was_left_behind_is_no_part_of_the_run():
    tasks = [task(10, 1), task(20, 10), task(30, 20), task(31, 30), task(40, 10)]
    assert [stats.pid for stats in without({20}, tasks)] == [10, 40]
    assert without((), tasks) == tasks


def test_a_circle_of_parents_ends():
    assert not descends(1, {9}, {1: 2, 2: 1}.get)
    assert descends(3, {1}, {3: 2, 2: 1}.get)
    assert not descends(3, (), {3: 2}.get)


def test_a_task_that_was_there_before_has_used_the_difference():
    assert since(task(1, 0, cpu_ns=10, voluntary=4), task(1, 0, cpu_ns=15, voluntary=6)).cpu_ns == 5
    assert since(None, task(1, 0, cpu_ns=15)).cpu_ns == 15


def test_the_cpu_time_of_leftovers_is_no_part_of_the_runs():
    ending = Ending(100, Leftovers({5: 30, 6: 20}, {5: "a", 6: "b"}), (0, 0, 0), {})
    assert ending.cpu_ns == 50
    assert Ending(10, Leftovers({5: 30}, {5: "a"}), (0, 0, 0), {}).cpu_ns == 0


def test_the_cpu_clock_of_a_process():
    began_ns = process_cpu_ns(os.getpid())
    sum(range(200_000))
    assert process_cpu_ns(os.getpid()) > began_ns > 0
    assert process_cpu_ns((1 << 22) + 1) == 0


class FakeGroup(Group):
    """A cgroup as a folder of plain files, which a test fills."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.folder = folder
        self.holds()
        self.used(0)

    def holds(self, *pids: int) -> None:
        for name in ("cgroup.procs", "cgroup.threads"):
            (self.folder / name).write_text("".join(f"{pid}\n" for pid in pids))

    def used(self, microseconds: int) -> None:
        (self.folder / "cpu.stat").write_text(f"usage_usec {microseconds}\nuser_usec 0\n")


@pytest.fixture
def group(tmp_path: Path) -> FakeGroup:
    return FakeGroup(tmp_path)


@NEEDS_ROOT
def test_a_run_is_counted_by_its_exit_records(group):
    accounting = Accounting(group)
    accounting.start()
    subprocess.run([sys.executable, "-c", "sum(range(3000000))"], check=True)
    group.used(123)
    accounting.look()
    ending = accounting.end(shell_ended=True)
    usage = accounting.usage(accounting.watch(ending, list), None, 5, ())
    accounting.close()
    assert ending.cpu_ns == 123_000
    assert {row.comm: row.tasks for row in usage.commands}[Path(sys.executable).name[:15]] >= 1
    assert usage.voluntary_switches == sum(row.voluntary_switches for row in usage.commands)
    assert (usage.left_behind, usage.output_bytes, usage.full) == ((), 5, "")


@NEEDS_ROOT
def test_lost_records_leave_no_figures_by_command_and_the_shells_switches(group, monkeypatch):
    accounting = Accounting(group)
    accounting.start()
    overflown = ReceiveBuffer(counted.MANY_WAITING_BYTES + 1, dropped=1)
    monkeypatch.setattr(accounting._exits, "buffer", lambda: overflown)
    subprocess.run(["true"], check=True)
    accounting.look()
    rusage = type("Rusage", (), {"ru_nvcsw": 8, "ru_nivcsw": 9})()
    usage = accounting.usage(accounting.end(shell_ended=True), rusage, 0, ())
    accounting.close()
    assert (usage.commands, usage.voluntary_switches, usage.involuntary_switches) == ((), 8, 9)


@NEEDS_ROOT
@pytest.mark.parametrize(
    ("program", "at_work"), [("import time; time.sleep(60)", False), ("import time\nwhile True: pass", True)]
)
def test_what_outlives_the_shell_sleeps_or_works(group, monkeypatch, program, at_work):
    monkeypatch.setattr(counted, "_WATCH_STEPS", 2)
    with subprocess.Popen([sys.executable, "-c", program]) as left:
        wait_for_start(left.pid)
        accounting = Accounting(group)
        accounting.start()
        group.holds(left.pid)
        ending = accounting.watch(accounting.end(shell_ended=True), list)
        usage = accounting.usage(ending, None, 0, ())
        accounting.close()
        left.kill()
    assert len(usage.left_behind) == 1
    assert usage.left_cpu_ns > 0
    assert (ending.left.busy != ()) == at_work


def wait_for_start(pid: int) -> None:
    """Wait until a Python program has got past what every Python does first: until it sleeps, or has worked a while."""
    while counted.state_of(pid) != "S" and process_cpu_ns(pid) < 500_000_000:
        time.sleep(0.01)


@NEEDS_ROOT
def test_what_ends_by_itself_was_not_left_behind(group):
    with subprocess.Popen(["sleep", "60"]) as left:
        accounting = Accounting(group)
        accounting.start()
        group.holds(left.pid)
        ending = accounting.end(shell_ended=True)
        assert ending.left.names
        left.kill()
        left.wait()
        group.holds()
        assert not accounting.watch(ending, list).left.names
        accounting.close()


@NEEDS_ROOT
def test_a_server_that_was_there_before_the_run_is_not_left_behind_by_it(group):
    with subprocess.Popen(["sh", "-c", "sleep 60 & wait"]) as server:
        group.holds(server.pid)
        accounting = Accounting(group)
        accounting.start()
        group.holds(server.pid, *children(server.pid))
        ending = accounting.end(shell_ended=True)
        accounting.close()
        for child in children(server.pid):
            os.kill(child, 9)
    assert not ending.left.names
    assert server.pid in ending.survivors


def children(pid: int) -> list[int]:
    while not (listed := Path(f"/proc/{pid}/task/{pid}/children").read_text().split()):
        time.sleep(0.01)
    return [int(child) for child in listed]


class TestIdleness:
    @pytest.fixture
    def clock(self, monkeypatch):
        now = [1000.0]
        monkeypatch.setattr("time.monotonic", lambda: now[0])
        return now

    def reached_after(self, idleness, clock, seconds):
        for _second in range(seconds):
            clock[0] += 1.0
            if idleness.reached():
                return True
        return False

    def test_nothing_used_for_long(self, group, clock):
        idleness = Idleness(group, 60)
        assert not self.reached_after(idleness, clock, 60)
        assert self.reached_after(idleness, clock, 1)

    def test_work_begins_the_count_again(self, group, clock):
        idleness = Idleness(group, 60)
        assert not self.reached_after(idleness, clock, 50)
        group.used(100_000)
        assert not self.reached_after(idleness, clock, 61)
        assert self.reached_after(idleness, clock, 1)

    def test_a_task_that_wants_a_cpu_is_not_idle(self, group, clock):
        group.holds(os.getpid())  # it reads its own state, so it runs
        assert not self.reached_after(Idleness(group, 60), clock, 200)

    def test_without_a_limit_it_never_ends(self, group, clock):
        assert not self.reached_after(Idleness(group, 0), clock, 1000)


def pages(total: int, free: int) -> os.statvfs_result:
    return os.statvfs_result((4096, 4096, total, free, free, 0, 0, 0, 0, 0))


def test_a_layer_without_space_is_full_and_its_largest_file_is_named(tmp_path, monkeypatch):
    (tmp_path / "upper/build").mkdir(parents=True)
    (tmp_path / "upper/small").write_bytes(b"x")
    (tmp_path / "upper/build/large\udcff").write_bytes(bytes(MIB))
    layer = Layer(tmp_path, tmp_path / "upper", "/")
    free = [5000]
    monkeypatch.setattr(
        os, "statvfs", lambda _path: os.statvfs_result((4096, 4096, 9000, free[0], free[0], 0, 0, 0, 0, 0))
    )
    layer.look()
    assert filled([layer], False) == ""
    free[0] = 3
    layer.look()
    free[0] = 5000
    layer.look()
    assert filled([layer], False) == "/build/large\ufffd"


def test_memory_ran_full_by_processes_or_by_files(tmp_path, monkeypatch):
    layer = Layer(tmp_path, tmp_path, "/dev/shm")
    used = [10]
    monkeypatch.setattr(counted, "memory_bytes", lambda: 1000 * 4096)
    monkeypatch.setattr(
        os,
        "statvfs",
        lambda _path: os.statvfs_result((4096, 4096, 9000, 9000 - used[0], 9000 - used[0], 0, 0, 0, 0, 0)),
    )
    assert filled([layer], True) == "memory"
    used[0] = 600
    assert filled([layer], True) == "/dev/shm"
    assert filled([layer], False) == ""
