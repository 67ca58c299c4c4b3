"""A seccomp filter for programs that compute and nothing else: system calls with no use to a compiler fail with EPERM.

Namespaces take away what the kernel's interfaces reach; this takes away the interfaces, where bugs of the kernel have
been. Sockets are among them: AF_VSOCK is of no network namespace. A list of what is refused and not of what is allowed,
because the C library may use new calls tomorrow.
"""

from __future__ import annotations

import errno
import platform
import struct
from collections.abc import Mapping

DENIED: Mapping[str, Mapping[str, int]] = {
    "x86_64": {
        **{"socket": 41, "socketpair": 53, "io_uring_setup": 425, "io_uring_enter": 426, "io_uring_register": 427},
        **{"ptrace": 101, "process_vm_readv": 310, "process_vm_writev": 311, "kcmp": 312, "pidfd_getfd": 438},
        **{"bpf": 321, "perf_event_open": 298, "userfaultfd": 323, "seccomp": 317},
        **{"add_key": 248, "request_key": 249, "keyctl": 250},
        **{"mount": 165, "umount2": 166, "pivot_root": 155, "chroot": 161, "unshare": 272, "setns": 308},
        **{"open_tree": 428, "move_mount": 429, "fsopen": 430, "fsconfig": 431, "fsmount": 432, "mount_setattr": 442},
        **{"init_module": 175, "finit_module": 313, "delete_module": 176, "kexec_load": 246, "kexec_file_load": 320},
        **{"splice": 275, "tee": 276, "vmsplice": 278, "open_by_handle_at": 304, "fanotify_init": 300},
        **{"modify_ldt": 154, "personality": 135, "iopl": 172, "ioperm": 173, "syslog": 103, "acct": 163},
        **{"move_pages": 279, "migrate_pages": 256, "mbind": 237, "swapon": 167, "reboot": 169, "quotactl": 179},
    }
}
"""Machine -> name -> number of each refused call (arch/x86/entry/syscalls/syscall_64.tbl)."""

_AUDIT_ARCH = {"x86_64": 0xC000003E}
_X32_BIT = 0x40000000
"""Calls with this bit are those of the x32 interface, under other numbers."""

_LOAD, _EQUAL, _AT_LEAST, _RETURN = 0x20, 0x15, 0x35, 0x06  # BPF_LD|W|ABS, BPF_JMP|JEQ|K, BPF_JMP|JGE|K, BPF_RET|K
_INSTRUCTION = "=HBBI"
_NUMBER, _ARCH = 0, 4  # offsets in struct seccomp_data
_ALLOW, _ERRNO, _KILL = 0x7FFF0000, 0x00050000, 0x80000000


def filter_program(machine: str = "") -> bytes:
    """Return the filter as an array of struct sock_filter; one that allows all if the machine's numbers are not known.

    Args:
        machine: as platform.machine() names it; empty for this one.
    """
    machine = machine or platform.machine()
    denied = sorted(DENIED.get(machine, {}).values())
    if not denied:
        return struct.pack(_INSTRUCTION, _RETURN, 0, 0, _ALLOW)
    to_errno = len(denied) + 1
    instructions = [
        (_LOAD, 0, 0, _ARCH),
        (_EQUAL, 0, to_errno + 3, _AUDIT_ARCH[machine]),
        (_LOAD, 0, 0, _NUMBER),
        (_AT_LEAST, to_errno + 1, 0, _X32_BIT),
        *((_EQUAL, to_errno - position - 1, 0, number) for position, number in enumerate(denied)),
        (_RETURN, 0, 0, _ALLOW),
        (_RETURN, 0, 0, _ERRNO | errno.EPERM),
        (_RETURN, 0, 0, _KILL),
    ]
    return b"".join(struct.pack(_INSTRUCTION, *instruction) for instruction in instructions)
