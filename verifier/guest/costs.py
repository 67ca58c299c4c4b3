"""What a piece of work and a task switch cost on the machine that this runs on: one code for guest and host.

*The work* is CPython's compiler on a fixed source: branching, allocating C code of some size, about as hard for an
emulator as what people run. In QEMU's it takes 19 times as long as on the host; gcc, clang, sort, awk and a shell's
loop take 17 to 21 times, Python's and perl's loops 13 to 19, sha256sum 12, and gzip, which mispredicts on the host, 5.

*A switch* is measured by two processes on one CPU that wake each other over pipes and block, as lmbench's lat_ctx does
(McVoy and Staelin, USENIX 1996), less what one process alone takes for the same system calls. What is left is waking
the other, blocking, the scheduler and the change of address space; not the caches that a larger program finds cold
afterwards, so it is a lower bound.

Time is CPU time, so that other tasks of the same kernel hardly matter. An emulated machine still takes the time that
the host gave to others for its own: so there are many tries of a few milliseconds, and the least counts.

Imports little: it is copied into the guest.
"""

from __future__ import annotations

import json
import os
import resource
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from verifier.microvm.jobs import CostsAnswer

_WORK_S = 0.6
_SWITCH_S = 0.6
_FEWEST_TRIES = 7
_ROUNDS = 50
_SOURCE = "x = [a + b for a, b in c]\ndef f(y):\n    return {1: y, 2: [y.z(3) for q in y]}\n" * 15


class Used(NamedTuple):
    """What a stretch of a process used.

    Args:
        cpu_ns: CPU time.
        switches: context switches, of either kind.
    """

    cpu_ns: int
    switches: int


def measure() -> CostsAnswer:
    """Measure both, in a child: the caller may be a real-time task, and its children are not."""
    work_ns, switch_ns = in_child(lambda: [work_cost_ns(), switch_cost_ns()])()
    return CostsAnswer(work_ns, switch_ns)


def work_cost_ns() -> int:
    """Return the CPU time of the fixed piece of work, in ns."""
    return min(tries(lambda: used(lambda: compile(_SOURCE, "source", "exec")), _WORK_S)).cpu_ns


def switch_cost_ns() -> float:
    """Return the CPU time of a context switch, in ns; it may be wrong on a disturbed machine, even below zero."""
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    alone = min(tries(lambda: used(lambda: talk_to_oneself(_ROUNDS)), _SWITCH_S / 4))
    together = min(tries(lambda: ping_pong(_ROUNDS), _SWITCH_S))
    return (together.cpu_ns - alone.cpu_ns) / together.switches


def tries(attempt: Callable[[], Used], seconds: float) -> Iterator[Used]:
    """Yield what attempts used, for so long, and a few in any case."""
    deadline = time.monotonic() + seconds
    number = 0
    while number < _FEWEST_TRIES or time.monotonic() < deadline:
        yield attempt()
        number += 1


def talk_to_oneself(rounds: int) -> None:
    """Do the system calls of a ping-pong, a write and a read each way, without a switch."""
    there, back = os.pipe(), os.pipe()
    for _ in range(rounds):
        for reader, writer in (there, back):
            os.write(writer, b".")
            os.read(reader, 1)
    for end in (*there, *back):
        os.close(end)


def ping_pong(rounds: int) -> Used:
    """Have two processes wake each other; return what both used."""
    there, back = os.pipe(), os.pipe()

    def partner() -> Used:
        os.close(there[1])
        return used(lambda: answer(there[0], back[1], rounds))

    finish = in_child(partner)
    os.close(there[0])
    os.close(back[1])
    own = used(lambda: ask(there[1], back[0], rounds))
    partners = Used(*finish())
    os.close(there[1])
    os.close(back[0])
    return Used(own.cpu_ns + partners.cpu_ns, own.switches + partners.switches)


def ask(writer: int, reader: int, rounds: int) -> None:
    """Wake the partner and wait for its answer, again and again."""
    for _ in range(rounds):
        os.write(writer, b".")
        os.read(reader, 1)


def answer(reader: int, writer: int, rounds: int) -> None:
    """Wait for the partner and wake it, again and again."""
    for _ in range(rounds):
        os.read(reader, 1)
        os.write(writer, b".")


def used(work: Callable[[], object]) -> Used:
    """Do `work`; return what it used in this process."""
    switches, started_ns = switches_so_far(), time.process_time_ns()
    work()
    return Used(time.process_time_ns() - started_ns, switches_so_far() - switches)


def switches_so_far() -> int:
    """Return the context switches of this process."""
    so_far = resource.getrusage(resource.RUSAGE_SELF)
    return so_far.ru_nvcsw + so_far.ru_nivcsw


def in_child(work: Callable[[], Any]) -> Callable[[], Any]:
    """Fork a process that does `work`; return a function that waits for its end and returns what `work` returned.

    It raises ChildProcessError if the child ended without a result.
    """
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.write(writer, json.dumps(work()).encode())
        finally:
            os._exit(0)
    os.close(writer)

    def result() -> Any:
        with os.fdopen(reader) as file:
            text = file.read()
        os.waitpid(pid, 0)
        if not text:
            raise ChildProcessError("a probe ended without a result")
        return json.loads(text)

    return result
