"""Process events and taskstats: decoding by version, and the real sockets where we may open them."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from kernel_bpf.observe import netlink
from schedagent.core.errors import SetupError
from tests.support.netlink_messages import event, taskstats

ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="needs root (CAP_NET_ADMIN) to listen to the kernel")


@pytest.mark.parametrize("version", [8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 40])
def test_taskstats_are_decoded_by_their_version(version):
    raw = taskstats(
        version,
        ac_comm=b"cc1",
        ac_pid=70,
        ac_ppid=60,
        ac_tgid=69,
        ac_etime=5_000,
        cpu_delay_total=11,
        cpu_run_virtual_total=22,
        nvcsw=3,
        nivcsw=4,
    )
    tgid = 69 if version >= 12 else 0
    assert netlink.decode_taskstats(raw) == netlink.Taskstats(version, 70, tgid, 60, "cc1", 5_000_000, 22, 11, 3, 4)


@pytest.mark.parametrize("raw", [taskstats(7), taskstats(16)[:300], b""])
def test_unreadable_taskstats_name_version_and_size(raw):
    with pytest.raises(SetupError, match=rf"version \d+ of {len(raw)} bytes"):
        netlink.decode_taskstats(raw)


def test_events_are_decoded():
    fork = netlink.decode_event(event(netlink.EVENT_FORK, 1, 9, 10, 10, 12, 11))
    assert fork == netlink.ProcessEvent(netlink.EVENT_FORK, 1, 9, 123, 12, 11, 10)
    assert netlink.decode_event(event(netlink.EVENT_EXEC, 0, 0, 12, 11)).pid == 12
    assert netlink.decode_event(event(0, 0, 0)) is None
    assert netlink.decode_event(b"short") is None
    assert netlink.exec_pid(event(netlink.EVENT_EXEC, 0, 0, 12, 12)) == 12
    assert netlink.exec_pid(event(netlink.EVENT_EXIT, 0, 0, 12, 12)) == 0


def test_gaps_in_the_numbers_of_a_cpu_are_lost_events():
    lost = netlink.LostEvents()
    for cpu, sequence in [(0, 5), (1, 90), (0, 6), (0, 9), (1, 91), (0, 0xFFFFFFFF), (0, 1)]:
        lost.see(netlink.decode_event(event(netlink.EVENT_EXIT, cpu, sequence, 1, 1)))
        if sequence == 9:
            assert lost.count == 2
    assert lost.count == 3, "a jump backwards is no loss, a wrap-around with one missing is one"


@ROOT
def test_own_taskstats_are_ours_and_a_missing_pid_has_none():
    start = time.process_time_ns()
    while time.process_time_ns() < start + 20_000_000:
        pass
    with netlink.TaskstatsSocket() as requests:
        stats = requests.get(os.getpid())
        assert requests.get(2**22 + 1) is None
    assert stats.pid == stats.tgid == os.getpid()
    assert stats.ppid == os.getppid()
    assert stats.comm == Path("/proc/self/comm").read_text().strip()[:15]
    assert stats.cpu_ns >= 20_000_000
    assert stats.elapsed_ns >= stats.cpu_ns


@ROOT
def test_a_child_is_seen_to_fork_exec_and_exit_and_each_thread_leaves_one_record():
    script = "import threading; t = threading.Thread(target=sum, args=(range(10),)); t.start(); t.join()"
    with netlink.ProcessEvents() as events, netlink.TaskstatsSocket() as exits:
        exits.listen()
        child = subprocess.Popen([sys.executable, "-S", "-c", script])
        child.wait()
        time.sleep(0.05)
        datagrams, records = [], []
        events.drain(datagrams.append)
        exits.drain(records.append)
    mine = [one for one in map(netlink.decode_event, datagrams) if one and one.tgid == child.pid]
    assert [one.what for one in mine if one.pid == child.pid] == [
        netlink.EVENT_FORK,
        *[netlink.EVENT_EXEC] * sum(one.what == netlink.EVENT_EXEC for one in mine),
        netlink.EVENT_EXIT,
    ]
    assert mine[0].parent_tgid == os.getpid()
    stats = [netlink.decode_taskstats(raw) for raw in map(netlink.exit_record, records) if raw]
    threads = [one for one in stats if one.tgid == child.pid]
    assert len(threads) == 2, "two threads, and no third record for the group"
    assert len({one.pid for one in threads}) == 2


@ROOT
def test_a_flood_that_overflows_the_buffer_is_counted_not_raised(on_one_cpu):
    with netlink.ProcessEvents() as events:
        events._socket.setsockopt(socket.SOL_SOCKET, 33, 4096)
        for _ in range(30):
            subprocess.run(["/bin/true"], check=True)
        lost = netlink.LostEvents()

        def count(datagram: bytes) -> None:
            one = netlink.decode_event(datagram)
            if one:
                lost.see(one)

        events.drain(count)
        subprocess.run(["/bin/true"], check=True)
        time.sleep(0.05)
        events.drain(count)
    assert lost.count > 0


@ROOT
def test_exit_records_that_find_no_room_are_counted_by_the_kernel(on_one_cpu):
    with netlink.TaskstatsSocket() as exits:
        exits._socket.setsockopt(socket.SOL_SOCKET, netlink.SO_RCVBUFFORCE, 4096)
        exits.listen()
        assert exits.buffer() == netlink.ReceiveBuffer(0, 0)
        for _ in range(30):
            subprocess.run(["/bin/true"], check=True)
        state = exits.buffer()
        assert state.used_bytes > 0
        assert state.dropped > 0
        records: list[bytes] = []
        exits.drain(records.append, 1)
        assert len(records) == 1
        exits.drain(records.append)
        assert exits.buffer().used_bytes == 0


def test_without_the_right_the_error_says_so():
    if os.geteuid() != 0:
        with pytest.raises(SetupError, match="root"):
            netlink.ProcessEvents()
        return
    code = "from kernel_bpf.observe.netlink import *\ntry:\n ProcessEvents()\nexcept Exception as e:\n print(repr(e))\n"
    done = subprocess.run(
        ["setpriv", "--bounding-set=-net_admin", "--inh-caps=-net_admin", sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=False,
    )
    assert "SetupError" in done.stdout, done.stdout + done.stderr
