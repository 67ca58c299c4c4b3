"""The ground the phases under load stand on: one attached policy, and the CPUs of the machine."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from kernel_bpf.load.exit_info import NO_RECORD
from kernel_bpf.load.sched_ext import LoadedPolicy
from schedagent.core.terminal.foreign import quote

STATE = Path("/sys/kernel/sched_ext/state")


class Load(Protocol):
    """Gives the policy to the kernel's verifier, afresh with each call; see LoadedPolicy.load for `watchdog_ms`."""

    def __call__(self, *, watchdog_ms: int = ...) -> LoadedPolicy: ...


@dataclass(frozen=True)
class Ground:
    """A policy in charge of every normal task.

    Args:
        cpus: the machine's CPUs.
        enabled: whether the policy is still in charge.
    """

    cpus: tuple[int, ...]
    enabled: Callable[[], bool]

    def watch(self, seconds: float, every_s: float) -> Iterator[float]:
        """Yield the time (s, CLOCK_MONOTONIC) every `every_s`; end after `seconds`, or when the policy is ejected."""
        deadline = time.monotonic() + seconds
        while (now := time.monotonic()) < deadline and self.enabled():
            yield now
            time.sleep(every_s)


def attached_ground() -> Ground:
    """The ground under the policy that was attached last; nothing else loads policies in a sealed machine."""
    return Ground(tuple(sorted(os.sched_getaffinity(0))), lambda: STATE.read_text() == "enabled\n")


def end(policy: LoadedPolicy) -> str:
    """Detach a policy and say why the kernel had ejected it; empty if it was in charge to the end.

    While the kernel is ejecting it, the policy is no longer enabled and the reason not yet known: detach waits for it.
    """
    in_charge = policy.enabled()
    info = policy.detach()
    if info and info.ejected:
        return f"{info.kind_name}: {quote(info.reason)}: {quote(info.message)}"
    if in_charge:
        return ""
    return "no longer enabled, and " + ("the kernel gave no reason" if policy.records_exit else NO_RECORD)
