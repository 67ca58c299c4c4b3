"""kernel_bpf.build.sandbox, with the real bubblewrap and a program that tries to get out."""

from __future__ import annotations

import ast
import os
import re
import signal
import struct
import subprocess
import sys
import time
from pathlib import Path

import pytest

from kernel_bpf.build import sandbox
from kernel_bpf.build.sandbox import SandboxLimits
from kernel_bpf.build.seccomp import DENIED, filter_program
from schedagent.core.errors import SetupError
from tests.support.paths import FIXTURES, ROOT

PROBE = FIXTURES / "sandbox" / "probe.c"


@pytest.fixture(scope="module")
def probe(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("probe")
    subprocess.run(["gcc", "-O1", "-w", "-o", folder / "probe", PROBE], check=True)
    return folder / "probe"


def run(probe: Path, *arguments: str, limits: SandboxLimits | None = None, **where) -> sandbox.Ran:
    return sandbox.run(probe, arguments, reads=where.get("reads", {}), writes=where.get("writes"), limits=limits)


@pytest.fixture(scope="module", params=["with the filter", "without"])
def seen(probe, tmp_path_factory, request) -> dict:
    """What a program sees, while we hold a descriptor and a secret in the environment that it could inherit.

    Once without the system call filter: each wall must stand by itself.
    """
    secret = tmp_path_factory.mktemp("secret") / "leaked"
    secret.write_text("secret")
    with secret.open() as leaked, pytest.MonkeyPatch.context() as patch:
        os.set_inheritable(leaked.fileno(), True)
        patch.setenv("SCHEDAGENT_SECRET", "secret")
        if request.param == "without":
            patch.setattr(sandbox, "filter_program", lambda: struct.pack("=HBBI", 0x06, 0, 0, 0x7FFF0000))
        ran = run(probe, "look")
    assert ran.status == 0, ran.stderr
    return {"filtered": request.param == "with the filter", **ast.literal_eval(ran.stdout.decode())}


def test_sees_no_files_but_its_own(seen, probe):
    folders = seen["folders"]
    assert set(folders["/"]) == {"src", "libraries", "lib64", probe.parts[1]}
    assert {name: entries for name, entries in folders.items() if entries and name != "/"} == {}


def test_can_write_nowhere(seen):
    assert seen["written"] == []


def test_has_no_network(seen):
    assert seen["interfaces"] == ([] if seen["filtered"] else ["lo"])
    assert not seen["connected"]
    assert seen["sockets"] == (0 if seen["filtered"] else 2)


def test_has_no_rights_and_no_way_to_more(seen):
    assert (seen["uid"], seen["gid"]) == (65534, 65534)
    assert seen["caps"] == 0
    assert seen["no_new_privs"] == 1
    assert not seen["became_root"]
    assert not seen["new_users"]


def test_inherits_nothing(seen):
    assert seen["fds"] == [0, 1, 2]
    assert seen["env"] == ["LD_LIBRARY_PATH=/libraries", "PWD=/src"]
    assert seen["host"] == "sandbox"
    assert seen["pid"] < 10, "sees the processes of this machine"


def test_reads_what_is_named_and_follows_no_link_out_of_it(probe, tmp_path):
    headers = tmp_path / "headers"
    headers.mkdir()
    (headers / "inside.h").write_text("inside")
    (headers / "near.h").symlink_to("inside.h")
    (tmp_path / "secret").write_text("secret")
    (headers / "relative.h").symlink_to("../secret")
    (headers / "absolute.h").symlink_to(tmp_path / "secret")
    (headers / "etc").symlink_to("/etc")
    reads = {"/src/include": headers}
    assert run(probe, "read", "/src/include/inside.h", reads=reads).stdout == b"inside"
    assert run(probe, "read", "/src/include/near.h", reads=reads).stdout == b"inside"
    for path in ("relative.h", "absolute.h", "etc/passwd", "../secret", "../../etc/passwd"):
        ran = run(probe, "read", f"/src/include/{path}", reads=reads)
        assert (ran.status, ran.stdout) == (2, b""), "ENOENT"


def test_writes_only_the_files_that_are_named(probe, tmp_path):
    output = tmp_path / "out"
    output.touch()
    ran = run(probe, "fill", writes={"/src/out": output}, limits=SandboxLimits(output_bytes=1 << 20))
    assert output.stat().st_size == 1 << 20
    assert ran.stopped == "more than 1 MiB of output"


def test_what_is_shown_cannot_be_changed(probe, tmp_path):
    shown = tmp_path / "shown"
    shown.write_text("as it was")
    assert run(probe, "fill", reads={"/src/out": shown}).stopped == ""
    assert shown.read_text() == "as it was"


@pytest.mark.parametrize(
    ("what", "limits", "stopped"),
    [
        ("spin", SandboxLimits(cpu_s=1), "more than 1 s of CPU time"),
        ("flood", SandboxLimits(output_bytes=2 << 20), "more than 2 MiB of output"),
    ],
)
def test_limits(probe, what, limits, stopped):
    ran = run(probe, what, limits=limits)
    assert ran.stopped == stopped
    assert not ran.crashed
    assert len(ran.stderr) <= limits.output_bytes


def test_memory_is_limited(probe):
    assert run(probe, "memory", limits=SandboxLimits(memory_bytes=2 << 30)).status == 0
    assert run(probe, "memory", limits=SandboxLimits(memory_bytes=512 << 20)).status == 7


def test_crash_is_told_from_a_limit(probe):
    ran = run(probe, "crash")
    assert ran.crashed
    assert ran.stopped == ""


def test_one_that_never_ends_is_ended(probe):
    started = time.monotonic()
    with pytest.raises(SetupError, match=r"did not end within 0\.5 s"):
        run(probe, "sleep", limits=SandboxLimits(wall_s=0.5))
    assert time.monotonic() - started < 10
    assert eventually(lambda: not alive(probe))


def test_dies_with_us(probe):
    code = "import sys; from pathlib import Path; from kernel_bpf.build import sandbox; "
    code += "sandbox.run(Path(sys.argv[1]), ['sleep'], reads={})"
    child = subprocess.Popen([sys.executable, "-c", code, probe], env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert eventually(lambda: alive(probe))
    child.send_signal(signal.SIGKILL)
    child.wait()
    assert eventually(lambda: not alive(probe))


def alive(program: Path) -> bool:
    """Whether any process runs with this program's path in its command line."""
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            words = (folder / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if words[0] == str(program).encode():
            return True
    return False


def eventually(condition) -> bool:
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        if condition():
            return True
        time.sleep(0.05)
    return False


def test_without_bubblewrap_nothing_runs(monkeypatch):
    sandbox._bubblewrap.cache_clear()
    monkeypatch.setattr("shutil.which", lambda _name: None)
    with pytest.raises(SetupError, match="bubblewrap is not installed") as caught:
        sandbox.prove()
    assert caught.value.hint == "run: make setup"
    monkeypatch.undo()
    assert "bubblewrap" in sandbox.prove()


@pytest.mark.parametrize(
    "script",
    [
        'echo "bwrap: No permissions to create new namespace" >&2; exit 1',
        'until [ "$1" = -- ]; do shift; done; shift; "$@"',
    ],
    ids=["refused", "no walls"],
)
def test_sandbox_that_did_not_come_up_is_none(probe, monkeypatch, tmp_path, script):
    """Also one that simply runs the program: it does not report what it set up."""
    fake = tmp_path / "bwrap"
    fake.write_text(f"#!/bin/sh\n{script}\n")
    fake.chmod(0o755)
    monkeypatch.setattr(sandbox, "_bubblewrap", lambda: str(fake))
    with pytest.raises(SetupError, match="cannot be set up") as caught:
        run(probe, "read", "/etc/passwd")
    assert "user namespaces" in caught.value.hint


AUDIT_ARCH = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}


@pytest.mark.parametrize("machine", DENIED)
def test_filter_refuses_the_calls_of_its_machine(machine):
    instructions = list(struct.iter_unpack("=HBBI", filter_program(machine)))
    assert instructions[1][3] == AUDIT_ARCH[machine], "calls of any other interface end the program"
    ends = {
        position + 1 + jump
        for position, (code, *jumps, _) in enumerate(instructions)
        if code & 7 == 5
        for jump in jumps
    }
    assert max(ends) == len(instructions) - 1
    assert {instructions[end][3] for end in ends if instructions[end][0] == 0x06} == {
        0x7FFF0000,
        0x00050001,
        0x80000000,
    }
    refused = {number for code, _, to_next, number in instructions[4:-3] if code == 0x15 and to_next == 0}
    assert refused == set(DENIED[machine].values())
    assert len(refused) == len(DENIED[machine])


@pytest.mark.parametrize(
    ("machine", "header"),
    [("x86_64", "x86_64-linux-gnu/asm/unistd_64.h"), ("aarch64", "asm-generic/unistd.h")],
)
def test_numbers_of_the_refused_calls_are_those_of_the_kernel_headers(machine, header):
    text = (Path("/usr/include") / header).read_text()  # set-up installs libc6-dev, and with it linux-libc-dev
    defined = re.findall(r"^#define __NR(?:3264)?_(\w+)\s+(\d+)$", text, re.MULTILINE)
    numbers = {name: int(number) for name, number in defined}
    assert {name: numbers[name] for name in DENIED[machine]} == DENIED[machine]


def test_nothing_runs_on_a_machine_whose_calls_are_not_known(monkeypatch, tmp_path):
    """It was run with a filter that allowed everything."""
    monkeypatch.setattr("platform.machine", lambda: "riscv64")
    started = []
    monkeypatch.setattr(sandbox.proc, "run", lambda *arguments, **_options: started.append(arguments))
    with pytest.raises(SetupError, match="does not know the system calls of a riscv64") as caught:
        sandbox.run(Path("/bin/true"), [], reads={})
    assert caught.value.hint == "compile policies on: x86_64, aarch64"
    assert started == []


def test_program_that_is_not_there():
    with pytest.raises(SetupError, match="bpftool is not installed"):
        sandbox.run(Path("bpftool"), [], reads={})
