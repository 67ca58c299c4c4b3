"""What the guest agent needs of libc that Python does not wrap: mounts, modules, sched_setattr, prctl, bare threads.

Imports only the standard library, because it runs inside the micro-VM's small initramfs.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import signal
import struct
from collections.abc import Collection
from pathlib import Path

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mount.argtypes = [ctypes.c_char_p, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_ulong, ctypes.c_char_p]
_libc.mount.restype = ctypes.c_int
_libc.umount2.argtypes = [ctypes.c_char_p, ctypes.c_int]
_libc.umount2.restype = ctypes.c_int
_libc.syscall.restype = ctypes.c_long
_libc.pthread_create.argtypes = [ctypes.POINTER(ctypes.c_ulong), ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p]
_libc.pthread_create.restype = ctypes.c_int
_libc.pthread_kill.argtypes = [ctypes.c_ulong, ctypes.c_int]
_libc.unshare.argtypes = [ctypes.c_int]
_libc.prctl.argtypes = [ctypes.c_int, *[ctypes.c_ulong] * 4]

MS_RDONLY, MS_NOSUID, MS_NODEV = 0x1, 0x2, 0x4
_MS_REMOUNT, _MS_BIND = 0x20, 0x1000
MNT_DETACH = 2
CLONE_NEWNS, CLONE_NEWUTS, CLONE_NEWIPC = 0x00020000, 0x04000000, 0x08000000  # include/uapi/linux/sched.h
CAP_DAC_READ_SEARCH, CAP_IPC_LOCK, CAP_SYS_NICE, CAP_SYS_RESOURCE, CAP_PERFMON, CAP_BPF = 2, 14, 23, 24, 38, 39
"""include/uapi/linux/capability.h"""
_PR_CAPBSET_READ, _PR_CAPBSET_DROP = 23, 24  # include/uapi/linux/prctl.h, as the next two lines
_PR_SET_NAME, _PR_SET_MM = 15, 35
_PR_SET_MM_ARG_START, _PR_SET_MM_ARG_END = 8, 9
_SYS_FINIT_MODULE, _SYS_SCHED_SETATTR = 313, 314  # x86-64: arch/x86/entry/syscalls/syscall_64.tbl
_SCHED_ATTR = struct.Struct("=IIQiIQQQII")  # include/uapi/linux/sched/types.h, struct sched_attr, version 1


def mount(source: str, target: Path | str, fstype: str, flags: int = 0, options: str = "") -> None:
    """Mount `source` on `target`, creating the directory; raise OSError naming both."""
    Path(target).mkdir(parents=True, exist_ok=True)
    if _libc.mount(source.encode(), str(target).encode(), fstype.encode(), flags, options.encode()) != 0:
        error = ctypes.get_errno()
        raise OSError(error, f"mount {fstype} {source} ({options}): {os.strerror(error)}", str(target))


def unmount(target: Path | str) -> None:
    """Detach `target` now and for good once nothing uses it; raise OSError if it is no mount point."""
    if _libc.umount2(str(target).encode(), MNT_DETACH) != 0:
        error = ctypes.get_errno()
        raise OSError(error, f"umount: {os.strerror(error)}", str(target))


def mount_read_only(target: Path | str) -> None:
    """Make what is seen at `target` read-only in this mount namespace; raise OSError if that fails."""
    mount(str(target), target, "none", _MS_BIND)
    mount("none", target, "none", _MS_BIND | _MS_REMOUNT | MS_RDONLY)


def keep_capabilities(kept: Collection[int]) -> None:
    """Take all capabilities but these from whatever the calling process executes; raise OSError if it may not."""
    number = 0
    while _libc.prctl(_PR_CAPBSET_READ, number, 0, 0, 0) >= 0:  # the kernel refuses a number that it does not know
        if number not in kept:
            _prctl(_PR_CAPBSET_DROP, number)
        number += 1


def set_fair_class(*, batch: bool = False, slice_ns: int = 0) -> None:
    """Set policy and slice of the calling task; its children inherit both.

    Args:
        batch: SCHED_BATCH instead of SCHED_OTHER.
        slice_ns: slice it asks for, which the kernel keeps between 0.1 and 100 ms; 0 for the kernel's own.

    Raises:
        OSError: the kernel refuses.
    """
    policy = os.SCHED_BATCH if batch else os.SCHED_OTHER
    attributes = _SCHED_ATTR.pack(_SCHED_ATTR.size, policy, 0, 0, 0, slice_ns, 0, 0, 0, 0)
    if _libc.syscall(_SYS_SCHED_SETATTR, 0, ctypes.c_char_p(attributes), 0) != 0:
        error = ctypes.get_errno()
        raise OSError(error, f"sched_setattr: {os.strerror(error)}")


def unshare(flags: int) -> None:
    """Give the calling process namespaces of its own (CLONE_NEW...); raise OSError if the kernel refuses."""
    if _libc.unshare(flags) != 0:
        raise OSError(ctypes.get_errno(), "unshare")


def set_name(name: str) -> None:
    """Name the calling thread; the kernel keeps 15 bytes. Raise OSError if it refuses."""
    text = ctypes.create_string_buffer(name.encode(errors="replace"))
    _prctl(_PR_SET_NAME, ctypes.addressof(text))


def set_arguments(line: str) -> None:
    """Have the calling process show `line` as its command line, words apart by blanks; needs CAP_SYS_RESOURCE.

    The kernel reads it from where mm->arg_start points (prctl_set_mm() in kernel/sys.c), which is a page of our own
    then. Raise OSError if it refuses.
    """
    words = line.encode().replace(b" ", b"\0") + b"\0"
    page = mmap.mmap(-1, mmap.PAGESIZE)
    page.write(words)
    start = ctypes.addressof(ctypes.c_char.from_buffer(page))
    _ARGUMENTS.append(page)
    _prctl(_PR_SET_MM, _PR_SET_MM_ARG_START, start)  # it lies below the stack, so the start moves first
    _prctl(_PR_SET_MM, _PR_SET_MM_ARG_END, start + len(words))


def _prctl(option: int, *arguments: int) -> None:
    if _libc.prctl(option, *(*arguments, 0, 0, 0, 0)[:4]) != 0:
        raise OSError(ctypes.get_errno(), f"prctl {option}")


_ARGUMENTS: list[mmap.mmap] = []
"""Pages that show a command line: they must outlive the call."""


def load_module(path: Path) -> None:
    """Load an uncompressed kernel module; one that is already loaded is fine. Raise OSError otherwise."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        if _libc.syscall(_SYS_FINIT_MODULE, fd, b"", 0) != 0:
            error = ctypes.get_errno()
            if error != 17:  # EEXIST
                raise OSError(error, f"finit_module: {os.strerror(error)}", str(path))
    finally:
        os.close(fd)


class SleepingThreads:
    """Threads that run no Python: each wakes, runs for some microseconds and sleeps again whenever `wake` is called.

    Each waits for a mutex that nobody ever unlocks; a signal with a handler wakes it, and it waits again.
    They inherit the affinity of the thread that makes them, and end with the process.
    """

    def __init__(self, count: int) -> None:
        signal.signal(signal.SIGUSR1, lambda _number, _frame: None)
        self._mutex = ctypes.create_string_buffer(64)  # sizeof(pthread_mutex_t) is 40; all zero is its initial state
        _libc.pthread_mutex_lock(self._mutex)
        lock = ctypes.cast(_libc.pthread_mutex_lock, ctypes.c_void_p)
        self._threads = (ctypes.c_ulong * count)()
        for number in range(count):
            place = ctypes.pointer(ctypes.c_ulong.from_buffer(self._threads, number * ctypes.sizeof(ctypes.c_ulong)))
            error = _libc.pthread_create(place, None, lock, ctypes.addressof(self._mutex))
            if error:
                raise OSError(error, f"pthread_create: {os.strerror(error)}")

    def __len__(self) -> int:
        return len(self._threads)

    def wake(self) -> None:
        """Wake every thread once."""
        for thread in self._threads:
            _libc.pthread_kill(thread, signal.SIGUSR1)
