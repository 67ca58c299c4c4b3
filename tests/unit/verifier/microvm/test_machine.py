"""What goes to and comes from QEMU: its command line, its privileges, and a channel that trusts nobody."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import tempfile
import threading
from pathlib import Path

import pytest

from schedagent.core.errors import KernelRejected, SetupError, VmLost
from verifier.microvm import jobs, machine
from verifier.microvm.clock.place import ClockPlace
from verifier.microvm.machine import Channel, GuestFault, Machine, MachineSpec, guest_error, launcher, qemu_argv

SPEC = MachineSpec(Path("vmlinuz"), Path("initrd"), cpus=3, memory_mib=512, kvm=False, hostfs=False)


@pytest.fixture
def ends():
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield Channel(ours, "the guest"), theirs


def test_messages_arrive_whole_however_they_are_cut(ends):
    channel, theirs = ends
    theirs.sendall(b'{"a": 1}\n{"b"')
    assert channel.receive(1) == {"a": 1}
    threading.Timer(0.05, theirs.sendall, [b": 2}\n"]).start()
    assert channel.receive(1) == {"b": 2}


def test_a_deadline_covers_the_whole_message(ends):
    channel, theirs = ends
    with pytest.raises(VmLost, match=r"no answer within 0\.05 s"):
        channel.receive(0.05)
    theirs.sendall(b'{"begun": ')
    with pytest.raises(VmLost, match=r"within 0\.05 s"):
        channel.receive(0.05)


@pytest.mark.parametrize(("sent", "said"), [(b"panic\n", "not JSON"), (b"[1]\n", "not an object")])
def test_nonsense_is_a_lost_machine(ends, sent, said):
    channel, theirs = ends
    theirs.sendall(sent)
    with pytest.raises(VmLost, match=said):
        channel.receive(1)


def test_an_endless_message_is_cut_off(ends, monkeypatch):
    monkeypatch.setattr(machine, "MESSAGE_LIMIT_BYTES", 1000)
    channel, theirs = ends
    theirs.sendall(b"x" * 2000)
    with pytest.raises(VmLost, match="no whole answer"):
        channel.receive(5)


def test_the_other_end_is_gone(ends):
    channel, theirs = ends
    theirs.close()
    with pytest.raises(VmLost, match="ended without an answer"):
        channel.receive(1)
    with pytest.raises(VmLost, match="the guest is gone"):
        channel.send({"job": "x" * 1000})


def test_sealed_machines_have_no_network_and_no_files():
    argv = qemu_argv(SPEC, 3, 4, 5, 6, None)
    text = " ".join(argv)
    assert "-nic none" in text
    assert "-nodefaults" in argv
    assert "9p" not in text
    assert "-accel tcg,thread=multi" in text
    assert "-smp 3 -m 512M" in text


def test_the_host_tree_is_exported_read_only():
    spec = MachineSpec(**{**vars(SPEC), "hostfs": True})
    export = next(word for word in qemu_argv(spec, 3, 4, 5, 6, None) if word.startswith("local,"))
    assert "readonly=on" in export.split(",")


def test_disks_are_open_descriptors_whose_changes_are_thrown_away():
    spec = MachineSpec(**{**vars(SPEC), "disks": (Path("disk"),), "arguments": "root=/dev/vda"})
    argv = qemu_argv(spec, 3, 4, 5, 6, None, [7])
    assert argv[argv.index("-drive") + 1] == "file=/dev/fd/7,format=raw,if=virtio,snapshot=on"
    assert argv[argv.index("-append") + 1] == "root=/dev/vda"
    assert "-drive" not in qemu_argv(SPEC, 3, 4, 5, 6, None)


def test_kvm_comes_as_an_open_descriptor():
    text = " ".join(qemu_argv(SPEC, 3, 4, 5, 6, 9))
    assert "-add-fd fd=9,set=1 -accel kvm,device=/dev/fdset/1 -cpu host" in text
    assert "tcg" not in text


def test_no_right_to_kvm_is_said(monkeypatch, tmp_path):
    monkeypatch.setattr(machine, "KVM_DEVICE", tmp_path / "kvm")
    with pytest.raises(SetupError, match="kvm cannot be opened: No such file"):
        machine.open_kvm()


@pytest.mark.parametrize(("hostfs", "kept"), [(False, "-all"), (True, "-all,+dac_read_search")])
def test_root_gives_up_its_privileges(monkeypatch, hostfs, kept):
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    argv = launcher(hostfs)
    assert "--no-new-privs" in argv
    assert {f"--inh-caps={kept}", f"--ambient-caps={kept}", f"--bounding-set={kept}"} <= set(argv)
    assert "--reuid=0" not in argv


def test_a_user_has_none_to_give_up(monkeypatch):
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert not [word for word in launcher(True) if "uid" in word or "caps" in word]


def test_a_kernel_that_only_root_may_read_is_handed_on(monkeypatch, tmp_path):
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    image = tmp_path / "vmlinuz"
    image.write_bytes(b"kernel" * 100_000)
    image.chmod(0o600)
    with machine.readable(image) as file:
        again = Path(f"/proc/self/fd/{file.fileno()}")
        assert again.stat().st_mode & 0o004
        assert again.read_bytes() == image.read_bytes()
    image.chmod(0o644)
    with machine.readable(image) as file:
        assert os.path.samestat(os.fstat(file.fileno()), image.stat())


def test_errors_of_the_guest_keep_their_kind():
    error = guest_error({"error": "KernelRejected", "message": "no", "hint": "why"})
    assert (type(error), error.message, error.hint) == (KernelRejected, "no", "why")
    for kind in ("SystemExit", "Exception", "annotations", ""):
        assert type(guest_error({"error": kind})) is GuestFault


@pytest.fixture
def scripted():
    """A Machine whose QEMU and agent answer what the test has sent before."""
    process = subprocess.Popen(["sleep", "60"])
    qmp, qmp_theirs = socket.socketpair()
    agent, agent_theirs = socket.socketpair()
    debugger, debugger_theirs = socket.socketpair()
    console = tempfile.TemporaryFile()  # noqa: SIM115  the machine closes it
    channels = Channel(qmp, "QEMU"), Channel(agent, "agent")
    with qmp_theirs, agent_theirs, debugger_theirs, Machine(process, *channels, console, debugger) as vm:
        yield vm, qmp_theirs, agent_theirs, console


def say(end, *messages):
    end.sendall(b"".join(json.dumps(message).encode() + b"\n" for message in messages))


WISH = {"place": {"timekeeper": 4096}, "wall_s": 1_796_032_479, "ahead_s": 60}


def test_clocks_are_moved_while_the_machine_stands_still(scripted, monkeypatch):
    vm, qmp, agent, _ = scripted
    moved = []

    def move_clocks(_debugger, place, *times):
        moved.append((place, *times))
        return len(moved) == 1

    monkeypatch.setattr(machine, "move_clocks", move_clocks)
    say(agent, {"wish": WISH}, {"wish": WISH}, {"answer": {"programs": {}}})
    say(qmp, *[{"return": {}}] * 4)
    assert vm.call(jobs.Hello(0), 1) == {"programs": {}}
    assert moved == [(ClockPlace(4096), 1_796_032_479, 60)] * 2
    commands = [json.loads(line)["execute"] for line in qmp.recv(1 << 16).splitlines()]
    assert commands == ["human-monitor-command", "cont", "stop", "cont"], "the debugger attaches once"
    assert [json.loads(line) for line in agent.recv(1 << 16).splitlines()][1:] == [
        {"granted": True},
        {"granted": False},
    ]


@pytest.mark.parametrize(
    "wish",
    [None, 5, {}, WISH | {"place": {"cr3": 1}}, WISH | {"place": [1]}, WISH | {"ahead_s": "1"}, WISH | {"wall_s": -1}],
)
def test_a_senseless_wish_is_a_fault_of_the_guest(wish, scripted):
    vm, _, agent, _ = scripted
    say(agent, {"wish": wish})
    with pytest.raises(GuestFault, match="wished for"):
        vm.call(jobs.Hello(0), 1)
    assert vm._process.returncode is not None


def test_a_full_disk_is_no_lost_machine(scripted):
    vm, qmp, _, _ = scripted
    failed = {"status": "failed", "error-desc": "No space left on device"}
    say(qmp, {"return": {}}, {"return": {}}, {"return": {}}, {"return": {"status": "active"}}, {"return": failed})
    with tempfile.TemporaryFile() as file, pytest.raises(SetupError, match="No space left on device"):
        vm.save(file)


def test_events_between_answers_are_passed_over(scripted):
    vm, qmp, _, _ = scripted
    say(qmp, {"event": "STOP"}, {"return": 7})
    assert vm.command("query-something") == 7
    say(qmp, {"error": {"desc": "no such command"}})
    with pytest.raises(VmLost, match="QEMU refused nonsense: no such command"):
        vm.command("nonsense")


def test_a_lost_machine_shows_its_console_and_stays_lost(scripted):
    vm, _, agent, console = scripted
    console.write(b"Kernel panic\r\n")
    agent.close()
    with pytest.raises(VmLost) as lost:
        vm.call(jobs.Hello(0), 1)
    assert "Kernel panic" in lost.value.hint
    assert vm._process.returncode is not None
    with pytest.raises(VmLost, match="is gone"):
        vm.call(jobs.Hello(0), 1)


def test_a_fault_of_the_agent_ends_the_machine_and_an_error_does_not(scripted):
    vm, _, agent, _ = scripted
    say(agent, {"error": "KernelRejected", "message": "no", "hint": ""})
    with pytest.raises(KernelRejected):
        vm.call(jobs.Hello(0), 1)
    assert vm._process.poll() is None
    say(agent, {"error": "GuestFault", "message": "Traceback", "hint": ""})
    with pytest.raises(GuestFault, match="failed at Hello:\nTraceback"):
        vm.call(jobs.Hello(0), 1)
    assert vm._process.returncode is not None
