"""What an answer of a machine is worth: when the host may have made it what it is, and answers put together."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Collection
from dataclasses import replace
from typing import TypeVar

from schedagent.core.errors import HostBusy, VmLost
from verifier.microvm import jobs
from verifier.proving.prove import PHASES, STALL, Phase

log = logging.getLogger(__name__)

STALL_S = 0.3
"""A virtual CPU that does not run for this long was kept from it by the host."""

WATCHDOG_LATE = "watchdog failed to check in"
"""From scx_tick() in kernel/sched/ext.c: the work that looks for stalled tasks has not run itself."""

LONGEST_WAIT_S = 600.0
"""The watchdog lets no task wait so long, unless the clocks are moved."""

NOTHING_PROVED = jobs.ProveAnswer("", [], {}, {})

Answer = TypeVar("Answer")


def twice(attempt: Callable[[], Answer]) -> Answer:
    """Return what `attempt` returns; if the VM is lost, try once more."""
    try:
        return attempt()
    except VmLost as error:
        log.warning("VM lost, trying once more: %s", error.message)
        return attempt()


def perhaps_host_stalled(exit_text: str) -> bool:
    """Whether an ejection may be the host's doing, or ours.

    The kernel's own watchdog did not get to run for its 5 s; or a task that was about to run when the clocks were set
    ahead seems to have waited since.

    A policy that starves kernel workers, or loses a task, is ejected with the same words, so it is worth a second look,
    not a pardon.
    """
    stalled = STALL.search(exit_text)
    if WATCHDOG_LATE not in exit_text and not (stalled and float(stalled[1]) > LONGEST_WAIT_S):
        return False
    log.warning("the policy was ejected (%s), which may be the machine's doing; trying once more", exit_text)
    return True


def failed(answer: jobs.ProveAnswer) -> bool:
    """Whether the kernel ejected the policy, or an oracle does not hold."""
    return bool(answer.exit_text) or not all(result["ok"] for result in answer.results)


def phases_of(oracles: Collection[str]) -> list[Phase]:
    """The phases that these oracles belong to."""
    return [phase for phase in PHASES if any(info.name in oracles for info in phase.oracles)]


def joined(here: jobs.ProveAnswer, there: jobs.ProveAnswer) -> jobs.ProveAnswer:
    """Put together what a policy showed in two machines that ran different phases; the first had the copy."""
    return replace(
        here,
        exit_text=here.exit_text or there.exit_text,
        results=[*here.results, *there.results],
        events=here.events or there.events,
        seconds=here.seconds | there.seconds,
        stalled_s=max(here.stalled_s, there.stalled_s),
        undecided=here.undecided | there.undecided,
    )


def with_second(first: jobs.ProveAnswer, second: jobs.ProveAnswer) -> jobs.ProveAnswer:
    """Put together what a policy showed, and what some phases showed the second time they were run."""
    measured = {result["name"] for result in second.results}
    kept = [result for result in first.results if result["name"] not in measured]
    return replace(
        second,
        results=[*kept, *second.results],
        undecided={name: why for name, why in second.undecided.items() if name not in {r["name"] for r in kept}},
        events=first.events,
        seconds={name: first.seconds.get(name, 0.0) + second.seconds.get(name, 0.0) for name in first.seconds},
        stalled_s=max(first.stalled_s, second.stalled_s),
        passed=first.passed,
        kept=first.kept,
        entered=first.entered,
        unmeasured=first.unmeasured,
        queues_unmeasured=first.queues_unmeasured,
    )


def doubtful(answer: jobs.ProveAnswer) -> bool:
    """Whether a policy failed in a machine whose CPUs did not all keep running: worth a second look, not a pardon."""
    if not (failed(answer) or answer.unmeasured) or answer.stalled_s < STALL_S:
        return False
    log.warning("a CPU of the machine stood still for %.1f s while a policy failed", answer.stalled_s)
    return True


def beyond_doubt(answer: jobs.ProveAnswer, machine: str = "the machine") -> jobs.ProveAnswer:
    """Return the answer; raise HostBusy if the host may have made it what it is."""
    if doubtful(answer):
        raise HostBusy(
            f"a CPU of {machine} stood still for {answer.stalled_s:.1f} s while the policy failed, twice",
            "verify again when this host has less to do",
        )
    return answer


def stretch_of(cpus: int, host_cpus: int) -> float:
    """How much wider bounds in seconds are in a machine of more CPUs than the host has.

    Half of what a task waits for are slices of others, which pass by the clock, and half is work, which then takes as
    many times longer as there are CPUs too many: the root is between the two.
    """
    return max(1.0, math.sqrt(cpus / host_cpus))
