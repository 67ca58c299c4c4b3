"""What keeps schedagentd at work under what it supervises, and what keeps it from hanging a CPU itself.

A policy decides when ordinary tasks run, and takes memory like anybody; real-time tasks, locked memory and a process
that the OOM killer leaves for last are out of its reach. Such a task may hang a CPU: it may run only so long at a time.
"""

from __future__ import annotations

import logging
import os
import resource
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from kernel_bpf.load.locked_memory import lock_memory
from schedagent.core.errors import BpfError, SetupError

PRIORITY = 1
"""Above all ordinary tasks; the kernel's own real-time threads, and whoever else runs in real time, come first."""
LONGEST_RUN_S = 10
"""Without sleeping once, before the kernel ends this process, and with it what is not pinned (RLIMIT_RTTIME)."""
OOM_SCORE = -900
"""Not -1000: what has a memory limit and cannot be killed hangs when it gets there."""

_REAL_TIME = (os.SCHED_FIFO, os.SCHED_RR)
_PROC = Path("/proc/self")


def protect() -> tuple[str, ...]:
    """Take what the unit did not give already; return what is lacking then, see `lacking`."""
    hard = resource.getrlimit(resource.RLIMIT_RTTIME)[1]
    longest_us = LONGEST_RUN_S * 1_000_000
    limit = longest_us if hard == resource.RLIM_INFINITY else min(hard, longest_us)
    resource.setrlimit(resource.RLIMIT_RTTIME, (limit, limit))  # first: the limit is on what comes next
    with suppress(OSError):
        if not _is_real_time():
            os.sched_setscheduler(0, os.SCHED_RR | os.SCHED_RESET_ON_FORK, os.sched_param(PRIORITY))
    with suppress(OSError):
        if _oom_score() > OOM_SCORE:
            (_PROC / "oom_score_adj").write_text(str(OOM_SCORE))
    with suppress(SetupError):
        lock_memory()
    if stat.S_ISSOCK(os.fstat(sys.stderr.fileno()).st_mode):
        os.set_blocking(sys.stderr.fileno(), False)  # the journal is an ordinary task: lines are lost, not waited for
        logging.raiseExceptions = False
    return lacking()


def lacking() -> tuple[str, ...]:
    """Return, in words, what of its protection this process does not have; empty if nothing."""
    return tuple(
        words
        for words, there in (
            ("it is no real-time task whose children are ordinary ones (CPUSchedulingPolicy=rr)", _is_real_time()),
            ("its memory is not locked (LimitMEMLOCK=infinity)", _locked_kib() > 0),
            (f"the OOM killer may choose it (OOMScoreAdjust={OOM_SCORE})", _oom_score() <= OOM_SCORE),
        )
        if not there
    )


@contextmanager
def ordinary() -> Iterator[None]:
    """Be an ordinary task for a while: for work that takes the kernel seconds while no policy of ours is in charge.

    Raises:
        BpfError: this process cannot become again what it was.
    """
    policy, parameters = os.sched_getscheduler(0), os.sched_getparam(0)
    if not _is_real_time():
        yield
        return
    os.sched_setscheduler(0, os.SCHED_OTHER | os.SCHED_RESET_ON_FORK, os.sched_param(0))
    try:
        yield
    finally:
        try:
            os.sched_setscheduler(0, policy, parameters)
        except OSError as error:
            raise BpfError(f"schedagentd cannot run in real time again: {error.strerror}", error.errno or 0) from None


def _is_real_time() -> bool:
    policy = os.sched_getscheduler(0)
    return bool(policy & os.SCHED_RESET_ON_FORK) and policy & ~os.SCHED_RESET_ON_FORK in _REAL_TIME


def _locked_kib() -> int:
    lines = (_PROC / "status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmLck:"))


def _oom_score() -> int:
    return int((_PROC / "oom_score_adj").read_text())
