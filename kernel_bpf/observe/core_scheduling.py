"""Tasks that share CPU cores only with chosen others (core scheduling), which can hang together with sched_ext."""

from __future__ import annotations

import ctypes
import errno
from bisect import bisect_right
from collections.abc import Callable
from functools import lru_cache

from kernel_bpf.observe import tasks

AT_ONCE = 4096
_PR_SCHED_CORE, _PR_SCHED_CORE_GET, _THREAD = 62, 0, 0  # include/uapi/linux/prctl.h
_NO_CORE_SCHEDULING = (errno.ENODEV, errno.EINVAL)

CookieOf = Callable[[int], int]


def cookie_of(thread: int) -> int:
    """Return a thread's cookie; 0 for none, or if the thread has ended (prctl(2): PR_SCHED_CORE).

    Raises:
        OSError: ENODEV without SMT, EINVAL if it was not compiled in (kernel/sched/core_sched.c): no thread has one.
    """
    cookie = ctypes.c_uint64()
    if _prctl()(_PR_SCHED_CORE, _PR_SCHED_CORE_GET, thread, _THREAD, ctypes.byref(cookie)) == 0:
        return cookie.value
    if (error := ctypes.get_errno()) in _NO_CORE_SCHEDULING:
        raise OSError(error, "no core scheduling")
    return 0


@lru_cache(maxsize=1)
def _prctl() -> Callable[..., int]:
    prctl = ctypes.CDLL(None, use_errno=True).prctl
    prctl.argtypes = [ctypes.c_int, ctypes.c_ulong, ctypes.c_ulong, ctypes.c_ulong, ctypes.c_void_p]
    return prctl


class CoreScheduling:
    """Looks for threads with a cookie. The kernel has no single place for that: each thread is asked for its own.

    Args:
        cookie: as cookie_of.
    """

    def __init__(self, cookie: CookieOf = cookie_of) -> None:
        self._cookie_of = cookie
        self._last = 0

    def anywhere(self) -> int | None:
        """Return the id of a thread that has a cookie, None if none has."""
        return self._first(tasks.all_threads())

    def turn(self, most: int = AT_ONCE) -> int | None:
        """Look at the next so many threads, in turn; return as `anywhere` does."""
        threads = sorted(tasks.all_threads())
        begin = bisect_right(threads, self._last)
        chosen = [*threads[begin:], *threads[:begin]][:most]
        self._last = chosen[-1] if chosen else 0
        return self._first(chosen)

    def _first(self, threads: list[int]) -> int | None:
        try:
            return next((thread for thread in threads if self._cookie_of(thread)), None)
        except OSError:
            return None
