"""Keeping this process's memory in RAM, where nobody's hunger for memory can take it from."""

from __future__ import annotations

import ctypes
import os

from schedagent.core.errors import SetupError

_CURRENT, _FUTURE, _ON_FAULT = 1, 2, 4  # include/uapi/asm-generic/mman.h


def lock_memory() -> None:
    """Lock all that is mapped now, and what will be as soon as it is used: a large mapping takes nothing until then.

    Raises:
        SetupError: the kernel refuses (mlockall(2): without CAP_IPC_LOCK, RLIMIT_MEMLOCK has to allow it).
    """
    libc = ctypes.CDLL(None, use_errno=True)
    for flags in (_CURRENT, _FUTURE | _ON_FAULT):
        if libc.mlockall(flags) != 0:
            error = ctypes.get_errno()
            raise SetupError(
                f"memory cannot be locked: {os.strerror(error)}", "raise RLIMIT_MEMLOCK: LimitMEMLOCK= of the unit"
            )
