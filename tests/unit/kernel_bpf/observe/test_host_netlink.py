"""pyroute2 on hosts and the raw reader of the guest: both yield the same decoded values."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
import time
from dataclasses import replace

import pytest
from pyroute2.netlink.marshal import Marshal

from kernel_bpf.observe import host_netlink, netlink
from schedagent.core.errors import SetupError
from tests.support.netlink_messages import TASKSTATS_FAMILY, event, exit_message, taskstats
from tests.support.paths import ROOT as REPOSITORY

ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="needs root (CAP_NET_ADMIN) to listen to the kernel")
KINDS = {
    "fork": event(0x1, 1, 9, 10, 11, 12, 13),
    "exec": event(0x2, 0, 0, 12, 11),
    "uid": event(0x4, 0, 1, 12, 11, 1000, 1000),
    "gid": event(0x40, 0, 1, 12, 11, 1000, 1000),
    "sid": event(0x80, 0, 1, 12, 11),
    "ptrace": event(0x100, 0, 1, 12, 11, 5, 6),
    "comm": event(0x200, 0, 1, 12, 11, rest=b"\xff\xfe\0\0\0\0\0\0"),
    "coredump": event(0x40000000, 0, 1, 12, 11, 5, 6),
    "exit": event(0x80000000, 3, 0xFFFFFFFF, 12, 11, 0, 17, rest=bytes(8)),
    "one of tomorrow": event(0x400, 0, 1, 12, 11),
    "acknowledgement": event(0, 0, 0),
}


# --- messages laid out byte by byte


def through_pyroute2(marshal, decode, datagram):
    return [decode(message) for message in marshal.parse(datagram)]


@pytest.mark.parametrize("datagram", KINDS.values(), ids=KINDS)
def test_events_of_every_kind(datagram):
    """A command name that is not UTF-8 would end pyroute2's own reader: any process may set one."""
    decoded = through_pyroute2(host_netlink._EventMarshal(), host_netlink.event_of, datagram)
    assert decoded == [netlink.decode_event(datagram)]


@pytest.mark.parametrize("version", [8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 40])
def test_taskstats_of_every_version(version):
    """pyroute2's own decoder has no ac_tgid but in version 15."""
    values = {"ac_etime": 5_000, "cpu_delay_total": 11, "cpu_run_virtual_total": 22, "nvcsw": 3, "nivcsw": 4}
    stats = taskstats(version, ac_comm=b"cc\xff", ac_pid=70, ac_ppid=60, ac_tgid=69, **values)
    datagram = exit_message(stats, group=taskstats(version, ac_pid=69))
    marshal = Marshal()
    marshal.msg_map[TASKSTATS_FAMILY] = host_netlink._TaskstatsMessage
    tgid = 69 if version >= 12 else 0
    expected = netlink.Taskstats(version, 70, tgid, 60, "cc\ufffd", 5_000_000, 22, 11, 3, 4)
    assert through_pyroute2(marshal, host_netlink.stats_of, datagram) == [expected]
    assert netlink.decode_taskstats(netlink.exit_record(datagram)) == expected


def test_a_record_of_the_group_alone_is_none():
    marshal = Marshal()
    marshal.msg_map[TASKSTATS_FAMILY] = host_netlink._TaskstatsMessage
    datagram = exit_message(b"", group=taskstats(16, ac_pid=69))
    assert through_pyroute2(marshal, host_netlink.stats_of, datagram) == [None]
    assert netlink.exit_record(datagram) is None


# --- the kernel's own messages

TASKS = """
import ctypes, os, subprocess, threading
threads = [threading.Thread(target=sum, args=(range(200_000),)) for _ in range(3)]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
subprocess.run(["/bin/true"])
ctypes.CDLL(None).prctl(15, b"caf\\xe9", 0, 0, 0)
"""


def collected(reader, decode=lambda value: value):
    """Everything that waits in a reader, decoded."""
    waiting = []
    reader.drain(lambda message: waiting.append(decode(message)))
    return [value for value in waiting if value is not None]


@ROOT
def test_both_readers_yield_the_same_values_of_the_same_tasks():
    """Events and exit records are delivered to both, so every field must agree, numbers and times included."""
    with (
        netlink.ProcessEvents() as raw_events,
        host_netlink.HostProcessEvents() as host_events,
        netlink.TaskstatsSocket() as raw_exits,
        host_netlink.HostTaskstats() as host_exits,
    ):
        raw_exits.listen()
        host_exits.listen()
        child = subprocess.Popen([sys.executable, "-S", "-c", TASKS])
        child.wait()
        time.sleep(0.05)
        events = [collected(raw_events, netlink.decode_event), collected(host_events)]
        exits = [
            collected(raw_exits, lambda datagram: netlink.decode_taskstats(netlink.exit_record(datagram))),
            collected(host_exits),
        ]
    family = {seen.tgid for seen in events[0] if child.pid in (seen.tgid, seen.parent_tgid)}
    raw, host = ([seen for seen in reader if seen.tgid in family] for reader in events)
    assert raw == host
    of_child = [seen.what for seen in host if seen.pid == child.pid]
    assert of_child[0] == netlink.EVENT_FORK
    assert {netlink.EVENT_EXEC, 0x200} <= set(of_child)
    assert of_child[-1] == netlink.EVENT_EXIT
    assert len(family) == 2, "the child and its own child"
    raw, host = ([record for record in reader if record.tgid in family] for reader in exits)
    assert raw == host
    assert len({record.pid for record in host if record.tgid == child.pid}) == 4, "four threads"
    assert all(record.elapsed_ns > 0 and record.version >= 8 for record in host)


@ROOT
def test_both_readers_say_the_same_of_a_living_task():
    with netlink.TaskstatsSocket() as raw, host_netlink.HostTaskstats() as host:
        child = subprocess.Popen(["sleep", "60"])
        try:
            time.sleep(0.1)
            before, between, after = raw.get(child.pid), host.get(child.pid), raw.get(child.pid)
        finally:
            child.kill()
            child.wait()
        assert before.elapsed_ns <= between.elapsed_ns <= after.elapsed_ns
        assert replace(before, elapsed_ns=0) == replace(between, elapsed_ns=0)
        assert (between.comm, between.ppid) == ("sleep", os.getpid())
        assert raw.get(2**22 + 1) is host.get(2**22 + 1) is None


@ROOT
def test_a_flood_that_overflows_the_buffer_is_counted_not_raised(on_one_cpu):
    """pyroute2's own loop raises ENOBUFS from then on."""
    lost = netlink.LostEvents()
    with host_netlink.HostProcessEvents() as events:
        events._netlink.setsockopt(socket.SOL_SOCKET, netlink.SO_RCVBUFFORCE, 4096)
        for _ in range(30):
            subprocess.run(["/bin/true"], check=True)
        events.drain(lost.see)
        subprocess.run(["/bin/true"], check=True)
        time.sleep(0.05)
        events.drain(lost.see)
    assert lost.count > 0


@ROOT
def test_another_thread_is_refused_instead_of_hearing_nothing():
    problems = []

    def elsewhere():
        for use in (lambda: events.drain(print), lambda: exits.drain(print), exits.listen, lambda: exits.get(1)):
            with pytest.raises(RuntimeError, match="in the thread that opened it") as refused:
                use()
            problems.append(refused.value)

    with host_netlink.HostProcessEvents() as events, host_netlink.HostTaskstats() as exits:
        thread = threading.Thread(target=elsewhere)
        thread.start()
        thread.join()
    assert len(problems) == 4


@ROOT
def test_a_kernel_that_does_not_answer_is_not_waited_for_without_end(monkeypatch):
    """As in a container, where the connector ignores the request."""
    monkeypatch.setattr(host_netlink, "PROC_CN_MCAST_LISTEN", 77)
    monkeypatch.setattr(host_netlink, "REPLY_TIMEOUT_S", 0.0)
    monkeypatch.setattr(host_netlink.select, "select", lambda *_arguments: ([], [], []))
    with pytest.raises(SetupError, match=r"did not answer within 0 s") as refused:
        host_netlink.HostProcessEvents()
    assert "container" in refused.value.hint


@pytest.mark.parametrize(
    ("reader", "expected"),
    [("HostProcessEvents", "cannot listen to process events"), ("HostTaskstats", "cannot open taskstats")],
)
def test_without_the_right_the_error_says_so(reader, expected):
    code = f"from kernel_bpf.observe.host_netlink import *\ntry:\n {reader}()\nexcept SetupError as e:\n print(e)\n"
    drop = ["setpriv", "--bounding-set=-net_admin", "--inh-caps=-net_admin"] if os.geteuid() == 0 else []
    done = subprocess.run([*drop, sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert f"{expected}: Operation not permitted" in done.stdout, done.stdout + done.stderr
    assert "root" in done.stdout


# --- who has it


@pytest.mark.parametrize(
    "modules",
    [
        "verifier.guest.agent, verifier.guest.recorder",
        "schedagent.schedagentd.__main__",
        "schedagent.cli.app, kernel_bpf.observe.netlink, kernel_bpf.observe.tasks, kernel_bpf.observe.system",
    ],
)
def test_neither_the_guest_nor_the_daemon_nor_the_command_line_loads_pyroute2(modules):
    code = f"import sys, {modules}\nprint([name for name in sys.modules if name.startswith('pyroute2')])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, cwd=REPOSITORY)
    assert done.stdout == "[]\n", done.stdout + done.stderr


def test_the_initramfs_holds_no_pyroute2():
    from verifier.microvm import image

    paths = [entry.path for entry in image.agent_entries()]
    assert any(path.endswith("kernel_bpf/observe/netlink.py") for path in paths)
    assert [path for path in paths if "pyroute2" in path or "host_netlink" in path] == []
