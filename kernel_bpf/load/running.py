"""The kernel that runs here: what it is, and whether tasks are core-scheduled."""

from __future__ import annotations

import ctypes
import errno
import os
import struct
from pathlib import Path

from schedagent.core.errors import SetupError

NOTES = Path("/sys/kernel/notes")

_NOTE = struct.Struct("=III")  # Elf64_Nhdr: sizes of name and content, type
_GNU_BUILD_ID = 3
_PR_SCHED_CORE, _PR_SCHED_CORE_GET, _THREAD = 62, 0, 0  # include/uapi/linux/prctl.h


def running_release() -> str:
    """What uname -r prints."""
    return os.uname().release


def running_build_id(notes: Path = NOTES) -> str:
    """Return the hex GNU build id of the running kernel, which is that of its vmlinux.

    Raises:
        SetupError: the kernel does not tell.
    """
    try:
        content = notes.read_bytes()
    except OSError as error:
        raise SetupError(f"{notes} cannot be read: {error.strerror}") from None
    at = 0
    while at + _NOTE.size <= len(content):
        name_size, size, kind = _NOTE.unpack_from(content, at)
        name = at + _NOTE.size
        begin = name + (name_size + 3 & ~3)
        if kind == _GNU_BUILD_ID and content[name : name + name_size] == b"GNU\0":
            return content[begin : begin + size].hex()
        at = begin + (size + 3 & ~3)
    raise SetupError(f"{notes} names no build id", "use a kernel built with --build-id, as distributions do")


def core_scheduled_process(proc: Path = Path("/proc")) -> int | None:
    """Return the id of a process that shares CPU cores only with chosen others (core scheduling), None if none does.

    The kernel has no single place for it: each task's cookie is asked for (prctl(2): PR_SCHED_CORE).
    Source: kernel/sched/core_sched.c; ENODEV without SMT, EINVAL if it was not compiled in.
    """
    prctl = ctypes.CDLL(None, use_errno=True).prctl
    prctl.argtypes = [ctypes.c_int, ctypes.c_ulong, ctypes.c_ulong, ctypes.c_ulong, ctypes.c_void_p]
    cookie = ctypes.c_uint64()
    for process in (int(entry.name) for entry in proc.iterdir() if entry.name.isdecimal()):
        if prctl(_PR_SCHED_CORE, _PR_SCHED_CORE_GET, process, _THREAD, ctypes.byref(cookie)) == 0:
            if cookie.value:
                return process
        elif ctypes.get_errno() in (errno.ENODEV, errno.EINVAL):
            return None
    return None
