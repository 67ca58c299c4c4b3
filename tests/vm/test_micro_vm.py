"""The micro-VM itself: how it is lost, how it dies, what it may do, and what a workload finds in it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest

from schedagent.core.errors import VmLost
from schedagent.core.settings import load_settings
from schedagent.run.opening import open_lab
from tests.support.paths import ROOT
from verifier.guest.output import CUT
from verifier.microvm import jobs, machine

pytestmark = [pytest.mark.vm, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def lab():
    return open_lab(load_settings())


@pytest.fixture
def sealed(lab):
    with lab.open(hostfs=False) as vm:
        yield vm


@pytest.fixture(scope="module")
def shared(lab):
    """One hostfs machine for all tests that leave it alive."""
    with lab.open(hostfs=True) as vm:
        yield vm


@pytest.fixture
def doomed(lab):
    with lab.open(hostfs=True) as vm:
        yield vm


def run(vm, command, timeout_s=60.0, answer_s=90.0, **changes):
    fields = {"directory": "/", "prepare": "", "environment": {"PATH": os.environ["PATH"]}, "timeout_s": timeout_s}
    fields |= {"uid": os.getuid(), "gid": os.getgid(), "groups": [os.getgid()]} | changes
    return vm.call(jobs.RunWorkload(command, **fields), answer_s)


def with_access_for_all(folder):
    """Let other users into a folder of pytest's; the folders above belong to the machine and stay as they are."""
    folder.chmod(0o755)
    for parent in folder.parents:
        if parent.stat().st_mode & 0o007:
            return
        parent.chmod(0o755)


def gone(pid, within_s):
    """Whether a process ends in time; one that waits to be reaped has ended."""
    deadline = time.monotonic() + within_s
    while time.monotonic() < deadline:
        with suppress(FileNotFoundError):
            if "State:\tZ" not in Path(f"/proc/{pid}/status").read_text():
                time.sleep(0.02)
                continue
        return True
    return False


def test_a_killed_qemu_is_a_lost_machine(sealed):
    os.kill(sealed.pid, signal.SIGKILL)
    with pytest.raises(VmLost):
        sealed.call(jobs.Hello(time.time_ns()), 10)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may crash its guest")
def test_a_kernel_panic_is_a_lost_machine_and_shows_the_console(doomed):
    began = time.monotonic()
    with pytest.raises(VmLost) as lost:
        run(doomed, "echo c > /proc/sysrq-trigger")
    assert time.monotonic() - began < 60
    assert "Kernel panic" in lost.value.hint


def test_a_guest_that_gives_no_answer_is_lost_at_the_deadline(doomed):
    began = time.monotonic()
    with pytest.raises(VmLost, match="no answer within 1 s"):
        run(doomed, "sleep 60", answer_s=1)
    assert time.monotonic() - began < 5
    assert gone(doomed.pid, 1)


def test_a_frozen_qemu_is_lost_at_the_deadline(sealed):
    os.kill(sealed.pid, signal.SIGSTOP)
    with pytest.raises(VmLost, match="no answer"):
        sealed.call(jobs.Hello(time.time_ns()), 0.5)
    assert gone(sealed.pid, 1)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may write to its guest's serial port")
def test_a_guest_cannot_fill_the_disk_by_its_console(lab, monkeypatch):
    monkeypatch.setattr(machine, "CONSOLE_LIMIT_BYTES", 20_000)
    with lab.open(hostfs=True) as vm:
        with suppress(VmLost):  # the kernel may send QEMU a signal, or only refuse to write more
            run(vm, "yes fill | head -c 60000 > /dev/ttyS0")
        assert vm._console.closed or vm._console.seek(0, os.SEEK_END) <= 20_000


OPEN_AND_WAIT = """
import sys, threading, time
sys.path.insert(0, {root!r})
from schedagent.core.settings import load_settings
from schedagent.run.opening import open_lab
opened = []
def work():
    opened.append(open_lab(load_settings()).open(hostfs={hostfs}))
thread = threading.Thread(target=work)
thread.start()
thread.join()
time.sleep(0.5)
opened[0].call(__import__("verifier.microvm.jobs").microvm.jobs.Hello(time.time_ns()), 20)
print(opened[0].pid, flush=True)
time.sleep(100)
"""


@pytest.mark.parametrize("hostfs", [False, True])
def test_qemu_dies_with_its_parent_and_not_with_the_thread_that_asked_for_it(shared, hostfs):
    script = OPEN_AND_WAIT.format(root=str(ROOT), hostfs=hostfs)
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE) as parent:
        qemu = int(parent.stdout.readline())
        assert not gone(qemu, 0)
        parent.kill()
        assert gone(qemu, 2)


@pytest.mark.parametrize(("hostfs", "may_read"), [(False, False), (True, True)])
def test_qemu_is_unprivileged_and_sandboxed(lab, hostfs, may_read):
    with lab.open(hostfs=hostfs) as vm:
        text = Path(f"/proc/{vm.pid}/status").read_text()
        fields = dict(line.split(":\t", 1) for line in text.splitlines())
    root = os.geteuid() == 0
    assert fields["NoNewPrivs"] == "1"
    assert fields["Seccomp"] == "2"
    for capabilities in ("CapEff", "CapPrm", "CapInh", "CapAmb"):
        assert int(fields[capabilities], 16) == (1 << 2 if root and may_read else 0), (
            capabilities
        )  # CAP_DAC_READ_SEARCH
    assert 0 not in map(int, fields["Uid"].split() + fields["Gid"].split())
    assert fields["Groups"].split() == [] or not root


def test_sealed_machines_have_neither_files_nor_network(sealed):
    tree = sealed.command("human-monitor-command", **{"command-line": "info qtree"})
    assert "virtio-serial" in tree
    assert "9p" not in tree
    assert "net" not in tree.replace("ioeventfd", "")
    with pytest.raises(VmLost, match="failed at MountHost"):
        sealed.call(jobs.MountHost(), 30)


def test_the_only_network_is_loopback(shared):
    answer = run(shared, "ls /sys/class/net; cat /proc/net/route | wc -l")
    assert answer["output"].split() == ["lo", "1"]


SERVE = """
import socket, threading
server = socket.create_server(("127.0.0.1", 0))
threading.Thread(target=lambda: server.accept()[0].sendall(b"over the loopback")).start()
print(socket.create_connection(server.getsockname()).recv(100).decode())
"""


def test_a_workload_finds_what_it_would_find_outside(shared, tmp_path):
    (tmp_path / "serve.py").write_text(SERVE)
    command = f"""
    yes | head -n 1 > /dev/null; echo "pipe ${{PIPESTATUS[0]}}"
    cat <(echo substitution)
    echo error >> /dev/stderr
    {sys.executable} -c 'import pty, os; print("terminal", os.isatty(pty.openpty()[0]))'
    {sys.executable} {tmp_path}/serve.py
    umask; nproc
    """
    (tmp_path / "all.sh").write_text(command)
    lines = run(shared, f"bash {tmp_path}/all.sh")["output"].splitlines()
    assert lines[0] == "pipe 141", lines
    assert {"substitution", "error", "terminal True", "over the loopback", "0022"} <= set(lines)


def test_the_guest_knows_the_time(shared):
    began = time.time()
    told = float(run(shared, "date +%s.%N")["output"])
    assert began - 2 < told < time.time() + 2


def test_the_workload_runs_as_the_user_who_asked(shared):
    answer = run(
        shared, "id -u; id -g; id -G; touch mine; stat -c %u mine", directory="/tmp", uid=65534, gid=65533, groups=[4]
    )
    assert answer["output"].split() == ["65534", "65533", "65533", "4", "65534"]


def test_files_that_only_root_may_read_stay_closed_to_others(shared, tmp_path):
    with_access_for_all(tmp_path)
    secret = tmp_path / "secret"
    secret.write_text("secret")
    secret.chmod(0o600)
    assert "secret" in run(shared, f"cat {secret}")["output"]
    denied = run(shared, f"cat {secret}", uid=65534, gid=65534, groups=[])
    assert (denied["exit_status"], "Permission denied" in denied["output"]) == (1, True)


def test_the_host_tree_stays_as_it_is_and_each_run_starts_from_it(shared, tmp_path):
    (tmp_path / "kept").write_text("old")
    (tmp_path / "gone").write_text("old")
    (tmp_path / "kept").chmod(0o640)
    before = [
        (path.name, path.stat().st_mode, path.stat().st_mtime_ns, path.read_text()) for path in tmp_path.iterdir()
    ]
    spoil = "echo new > kept; rm gone; touch made; chmod 777 kept; cat kept; ls"
    first, second = (run(shared, spoil, directory=str(tmp_path)) for _ in range(2))
    assert first["output"].split() == ["new", "kept", "made"]
    assert second["output"] == first["output"]
    assert (first["exit_status"], second["exit_status"]) == (0, 0)
    after = [(path.name, path.stat().st_mode, path.stat().st_mtime_ns, path.read_text()) for path in tmp_path.iterdir()]
    assert after == before


def test_the_beginning_and_the_end_of_a_long_output_are_kept(shared):
    answer = run(shared, "seq 400000; exit 3")
    assert answer["exit_status"] == 3
    beginning, cut, end = answer["output"].partition(CUT.decode())
    assert beginning.startswith("1\n2\n3\n")
    assert end.endswith("399999\n400000\n")
    assert (len(beginning) + len(end), cut != "") == (jobs.OUTPUT_LIMIT_BYTES, True)
    assert answer["usage"]["output_bytes"] == sum(len(f"{number}\n") for number in range(1, 400001))


def test_a_run_that_is_too_long_is_ended(shared):
    answer = run(shared, "echo begun; sleep 60", timeout_s=1)
    assert answer["exit_status"] is None
    assert 1e9 < answer["wall_ns"] < 5e9
    assert answer["output"] == "begun\n"


def test_what_a_workload_leaves_running_is_ended(shared):
    run(shared, "setsid sh -c 'trap : TERM HUP; sleep 1234' & (sleep 1235 &)", timeout_s=20)
    left = run(shared, "cat /proc/[0-9]*/cmdline | tr '\\0' ' '")["output"]
    assert "sleep" not in left.replace("cat /proc", "")


def test_a_failed_prepare_ends_the_run(shared):
    answer = run(shared, "echo never", prepare="echo why; exit 5")
    assert (answer["prepare_status"], answer["exit_status"], answer["output"]) == (5, None, "why\n")


def test_a_directory_that_is_gone_is_said(shared):
    answer = run(shared, "true", directory="/nowhere")
    assert answer["exit_status"] == 126
    assert "cannot start the command" in answer["output"]
    assert "/nowhere" in answer["output"]


def test_an_agent_that_met_an_error_still_works(shared):
    assert run(shared, "exit 7")["exit_status"] == 7
    assert run(shared, "kill -9 $$")["exit_status"] == -9
    assert run(shared, "true")["exit_status"] == 0
