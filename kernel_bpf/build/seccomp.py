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

from schedagent.core.errors import SetupError

_EVERYWHERE: Mapping[str, tuple[int, int]] = {
    **{"socket": (41, 198), "socketpair": (53, 199), "ptrace": (101, 117), "kcmp": (312, 272)},
    **{"io_uring_setup": (425, 425), "io_uring_enter": (426, 426), "io_uring_register": (427, 427)},
    **{"process_vm_readv": (310, 270), "process_vm_writev": (311, 271), "pidfd_getfd": (438, 438)},
    **{"bpf": (321, 280), "perf_event_open": (298, 241), "userfaultfd": (323, 282), "seccomp": (317, 277)},
    **{"add_key": (248, 217), "request_key": (249, 218), "keyctl": (250, 219)},
    **{"mount": (165, 40), "umount2": (166, 39), "pivot_root": (155, 41), "chroot": (161, 51)},
    **{"unshare": (272, 97), "setns": (308, 268), "open_tree": (428, 428), "move_mount": (429, 429)},
    **{"fsopen": (430, 430), "fsconfig": (431, 431), "fsmount": (432, 432), "mount_setattr": (442, 442)},
    **{"init_module": (175, 105), "finit_module": (313, 273), "delete_module": (176, 106)},
    **{"kexec_load": (246, 104), "kexec_file_load": (320, 294), "reboot": (169, 142), "swapon": (167, 224)},
    **{"splice": (275, 76), "tee": (276, 77), "vmsplice": (278, 75)},
    **{"open_by_handle_at": (304, 265), "fanotify_init": (300, 262), "quotactl": (179, 60)},
    **{"personality": (135, 92), "syslog": (103, 116), "acct": (163, 89)},
    **{"move_pages": (279, 239), "migrate_pages": (256, 238), "mbind": (237, 235)},
}
"""Name -> numbers on x86-64 (arch/x86/entry/syscalls/syscall_64.tbl) and arm64 (include/uapi/asm-generic/unistd.h)."""

DENIED: Mapping[str, Mapping[str, int]] = {
    "x86_64": {
        **{name: x86 for name, (x86, _arm) in _EVERYWHERE.items()},
        **{"modify_ldt": 154, "iopl": 172, "ioperm": 173},
    },
    "aarch64": {name: arm for name, (_x86, arm) in _EVERYWHERE.items()},
}
"""Machine -> name -> number of each refused call."""

_AUDIT_ARCH = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}  # include/uapi/linux/audit.h
_X32_BIT = 0x40000000
"""Calls with this bit are those of the x32 interface of x86-64, under other numbers; elsewhere there are none."""

_LOAD, _EQUAL, _AT_LEAST, _RETURN = 0x20, 0x15, 0x35, 0x06  # BPF_LD|W|ABS, BPF_JMP|JEQ|K, BPF_JMP|JGE|K, BPF_RET|K
_INSTRUCTION = "=HBBI"
_NUMBER, _ARCH = 0, 4  # offsets in struct seccomp_data
_ALLOW, _ERRNO, _KILL = 0x7FFF0000, 0x00050000, 0x80000000


def filter_program(machine: str = "") -> bytes:
    """Return the filter as an array of struct sock_filter.

    Args:
        machine: as platform.machine() names it; empty for this one.

    Raises:
        SetupError: the numbers of this machine's system calls are not known, so nothing could be refused.
    """
    machine = machine or platform.machine()
    if machine not in DENIED:
        raise SetupError(
            f"the compiler sandbox does not know the system calls of a {machine}",
            f"compile policies on: {', '.join(DENIED)}",
        )
    denied = sorted(DENIED[machine].values())
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
