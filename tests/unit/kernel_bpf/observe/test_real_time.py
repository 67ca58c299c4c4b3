"""Who holds a CPU above every policy: a real task of real-time priority beside busy ones that are none."""

import os
import subprocess
import sys
from contextlib import ExitStack

import pytest

from kernel_bpf.observe.real_time import holders

SPIN = "import os\nwhile True: pass"


def spin(stack: ExitStack) -> subprocess.Popen[bytes]:
    process = stack.enter_context(subprocess.Popen([sys.executable, "-c", SPIN]))
    stack.callback(process.kill)
    return process


def test_who_holds_a_cpu_is_named_with_it():
    cpu = min(os.sched_getaffinity(0))
    with ExitStack() as stack:
        busy, hog, asleep = spin(stack), spin(stack), stack.enter_context(subprocess.Popen(["sleep", "60"]))
        stack.callback(asleep.kill)
        try:
            for process in (hog, asleep):
                os.sched_setscheduler(process.pid, os.SCHED_FIFO, os.sched_param(1))
        except PermissionError:
            pytest.skip("real-time priorities take CAP_SYS_NICE")
        os.sched_setaffinity(hog.pid, {cpu})
        named = [name for name in holders() if name.split()[0] in map(str, (busy.pid, hog.pid, asleep.pid))]
    assert len(named) == 1
    assert named[0].startswith(f"{hog.pid} ")
    assert named[0].endswith(f" on CPU {cpu}")
