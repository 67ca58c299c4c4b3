"""The kernel's log in the place of an exit record; a socket gives it record by record, as /dev/kmsg does."""

from __future__ import annotations

import socket

import pytest

from kernel_bpf.load.exit_info import KernelLog

DISABLED = '3,1201,5000,-;sched_ext: BPF scheduler "bare" disabled (%s)\n SUBSYSTEM=x\n'
MESSAGE = "3,1202,5001,-;sched_ext: bare: %s\n"


@pytest.fixture
def kernel():
    """The kernel's end of the log, and its reader."""
    ours, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    its.setblocking(False)
    log = KernelLog(its.detach(), "bare")
    with ours:
        yield ours, log
    log.close()
    log.close()
    assert log.read() is None or log.read().source == "the kernel's log"


def wrote(kernel, *records):
    for record in records:
        kernel.send(record.encode())


def test_a_stall_is_read_with_its_message(kernel):
    ours, log = kernel
    assert log.read() is None
    wrote(ours, "6,1200,4999,-;something else\n", DISABLED % "runnable task stall")
    assert (log.read().kind, log.read().message) == (1026, "")
    wrote(ours, MESSAGE % "hog[7] failed to run for 5.1s", "4,1203,5002,-;sched_ext: bare: later\n")
    info = log.read()
    assert (info.ejected, info.reason) == (True, "runnable task stall")
    assert info.message == "hog[7] failed to run for 5.1s"
    assert str(info).startswith("stall (kind 1026, code 0x0): by the kernel's log: ")


@pytest.mark.parametrize(
    ("reason", "kind", "ejected", "restart"),
    [
        ("unregistered from user space", 64, False, False),
        ("unregistered from the main kernel", 66, False, True),
        ("runtime error", 1024, True, False),
        ("scx_bpf_error", 1025, True, False),
    ],
)
def test_the_reason_names_the_kind(kernel, reason, kind, ejected, restart):
    ours, log = kernel
    wrote(ours, DISABLED % reason)
    info = log.read()
    assert (info.kind, info.ejected, info.asks_for_restart) == (kind, ejected, restart)


def test_neither_another_policy_nor_a_program_speaks_for_it(kernel):
    ours, log = kernel
    wrote(
        ours,
        (DISABLED % "runtime error").replace('"bare"', '"bare_2"'),
        (DISABLED % "runtime error").replace("3,", "11,", 1),
        "no record at all",
        '3,1,1,-;printed: sched_ext: BPF scheduler "bare" disabled (runtime error)\n',
    )
    assert log.read() is None


def test_where_the_log_cannot_be_read_nothing_is_kept(tmp_path):
    assert KernelLog.follow("bare", tmp_path / "nothing") is None
    log = tmp_path / "log"
    log.write_text(DISABLED % "runtime error")
    followed = KernelLog.follow("bare", log)
    assert followed.read() is None, "what was logged before is about an earlier one"
    with log.open("a") as kernel:
        kernel.write(DISABLED % "runtime error")
    followed.skip()
    assert followed.read() is None, "it was loaded, but not attached yet"
    followed.close()
