"""A BPF program that only takes time, run by a task of one's choice: while it runs, that task cannot migrate.

User space has no other sure way to be preempted with migration disabled. The kernel wraps a run of a sleepable SYSCALL
program in migrate_disable() and stays preemptible (bpf_prog_test_run_syscall() in net/bpf/test_run.c).
"""

from __future__ import annotations

import ctypes
import struct
from typing import Self

from kernel_bpf.load.bpf_object import PROGRAM_SYSCALL
from kernel_bpf.load.libbpf import LoadOptions, TestRunOptions, call

_F_SLEEPABLE = 1 << 4

# (opcode, registers, offset, immediate), include/uapi/linux/bpf.h. may_goto leaves the loop when the kernel's own
# bound is reached: 8 million rounds, or a quarter of a second since 6.15.
_PROGRAM = b"".join(
    struct.pack("<BBhi", *instruction)
    for instruction in (
        (0xE5, 0x00, 2, 0),  # may_goto the end
        (0xB7, 0x02, 0, 0),  # r2 = 0
        (0x05, 0x00, -3, 0),  # goto the start
        (0xB7, 0x00, 0, 0),  # r0 = 0
        (0x95, 0x00, 0, 0),  # exit
    )
)


class Spinner:
    """The loaded program; it lives as long as this process and its children keep the descriptor."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    @classmethod
    def load(cls) -> Self:
        """Give the program to the kernel; raise BpfError if it has no may_goto (before 6.9) or refuses."""
        options = LoadOptions(ctypes.sizeof(LoadOptions), 0, 0, 0, _F_SLEEPABLE)
        instructions = len(_PROGRAM) // 8
        return cls(
            call("bpf_prog_load", PROGRAM_SYSCALL, b"spinner", b"GPL", _PROGRAM, instructions, ctypes.byref(options))
        )

    def run(self) -> None:
        """Run it once, in this task; raise BpfError if the kernel does not let us."""
        options = TestRunOptions(ctypes.sizeof(TestRunOptions))
        call("bpf_prog_test_run_opts", self._fd, ctypes.byref(options))
