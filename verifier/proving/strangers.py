"""Tasks that a policy may know by what its loader says of them: programs with arguments, and so classes, of our choice.

Each is a tiny program that is executed, because a policy learns who a task is as it execs
(kernel_bpf/bpf/include/identity.bpf.h). Names of all lengths, and arguments that only begin like /tmp/, make the
policy's own reading of them run through.
"""

from __future__ import annotations

import itertools
import os
import platform
import struct
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from schedagent.core.policies.identity import cmdline_identity
from verifier.proving import work
from verifier.proving.crew import Body, Crew, Record

CLASSES = 4
"""Class numbers 0 to 3 are given to tasks; kernel_bpf's policies have at most four."""

EXPECTED_NS = (1_000_000_000, 60_000_000_000, 5_000_000, 600_000_000_000)
"""What tasks of each class are expected to use, for policies with a history."""

FOLDER = Path("/tmp/strangers")
NAMES = tuple("stranger-of-the-kernel"[:length] for length in range(1, 16))
LONG_ARGUMENT = "x" * 600
PAUSE_S = 0.02

_HEADER = struct.Struct("<16sHHIQQQIHHHHHH")
_SEGMENT = struct.Struct("<IIQQQQQQ")
_BASE = 0x400000

# A little work, three milliseconds of sleep (nanosleep is system call 35), again and again.
_CODE = "b900000200 ffc9 75fc 488d3d0b000000 31f6 b823000000 0f05 ebe5"
_X86_64 = bytes.fromhex(_CODE) + struct.pack("<QQ", 0, 3_000_000)


def program() -> bytes:
    """An ELF file that works and sleeps until it is killed; empty where we have no code for the machine."""
    if platform.machine() != "x86_64":
        return b""
    start = _HEADER.size + _SEGMENT.size
    identity = b"\x7fELF\x02\x01\x01".ljust(16, b"\0")
    entry, size = _BASE + start, start + len(_X86_64)
    header = _HEADER.pack(identity, 2, 62, 1, entry, _HEADER.size, 0, 0, _HEADER.size, _SEGMENT.size, 1, 0, 0, 0)
    return header + _SEGMENT.pack(1, 5, 0, _BASE, _BASE, size, size, 4096) + _X86_64


def words(number: int) -> tuple[str, ...]:
    """The command line of the tasks of a class."""
    return ("stranger", f"--class={number}", "/tmp/random", "/tm", "/temp/x", "/", "")


def identities() -> dict[int, int]:
    """Identity of each command line -> its class."""
    lines = ("".join(f"{word}\0" for word in words(number)).encode() for number in range(CLASSES))
    return {cmdline_identity(line): number for number, line in enumerate(lines)}


def start(crew: Crew, cpus: Sequence[int]) -> None:
    """Start the tasks: of each class one that may run anywhere and one for each CPU, and one that starts others."""
    content = program()
    if not content:
        return
    FOLDER.mkdir(exist_ok=True)
    for name in ("stranger", *NAMES):
        path = FOLDER / name
        path.write_bytes(content)
        path.chmod(0o755)
    for number in range(CLASSES):
        crew.start(f"class {number}", executed("stranger", words(number)))
        for cpu in cpus:
            crew.start(f"class {number} on CPU {cpu}", work.pinned(cpu, executed("stranger", words(number))))
    crew.start("short-lived strangers", short_lived)


def short_lived(record: Record) -> NoReturn:
    """Execute a program of each name once, end it, and take the next."""
    for name in itertools.cycle(NAMES):
        pid = os.posix_spawn(FOLDER / name, [name, LONG_ARGUMENT], {})
        os.kill(pid, 9)
        os.waitpid(pid, 0)
        record.events += 1
        time.sleep(PAUSE_S)
    raise AssertionError("itertools.cycle ended")


def executed(name: str, arguments: tuple[str, ...]) -> Body:
    """A body that becomes the program."""

    def run(_record: Record) -> NoReturn:
        os.execv(FOLDER / name, arguments)

    return run
