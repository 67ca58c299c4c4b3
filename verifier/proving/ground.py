"""The ground the phases under load stand on: one attached policy, and the CPUs of the machine."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from kernel_bpf.load.exit_info import NO_RECORD
from kernel_bpf.load.sched_ext import LoadedPolicy
from schedagent.core.terminal.foreign import quote
from verifier.proving.crew import Task
from verifier.proving.identity import NOTHING_WORN, Identity, Worn

STATE = Path("/sys/kernel/sched_ext/state")


class Load(Protocol):
    """Gives the policy to the kernel's verifier, afresh with each call; see LoadedPolicy.load for `watchdog_ms`."""

    def __call__(self, *, watchdog_ms: int = ...) -> LoadedPolicy: ...


@dataclass(frozen=True)
class Member:
    """A task of the crew, and who it is."""

    identity: Identity
    place: str
    task: Task


class Clock:
    """The machine's clocks, which somebody outside may move.

    Args:
        move: sets all of them ahead by so many seconds; returns whether it did.

    Attributes:
        moved_s: how far they were set ahead so far.
    """

    def __init__(self, move: Callable[[int], bool] = lambda _ahead_s: False) -> None:
        self._move = move
        self.moved_s = 0

    def set_ahead(self, ahead_s: int) -> bool:
        """Set them ahead by so many seconds; return whether that could be done."""
        moved = self._move(ahead_s)
        self.moved_s += ahead_s if moved else 0
        return moved

    def now_s(self) -> float:
        """The time (CLOCK_MONOTONIC) as if nobody had moved it."""
        return time.monotonic() - self.moved_s


@dataclass(frozen=True)
class Conditions:
    """What the proof of one policy depends on besides its object.

    Args:
        worn: constants of the policy's object, for the crew to wear.
        reads: what the policy declares to go by (core.policies.policy.READABLE): no group is judged by that.
        clock: the machine's.
        stretch: bounds in seconds are so many times as wide, because the machine has more CPUs than the host.
    """

    worn: Worn = NOTHING_WORN
    reads: Collection[str] = ()
    clock: Clock = field(default_factory=Clock)
    stretch: float = 1.0


PLAIN = Conditions()


@dataclass(frozen=True)
class Elders:
    """Tasks that were there before the policy; they stand still until they are needed.

    Args:
        members: who they are.
        door: the pipe that they wait at, to write to.
    """

    members: tuple[Member, ...] = ()
    door: int = -1


NO_ELDERS = Elders()


@dataclass(frozen=True)
class Ground:
    """A policy in charge of every normal task.

    Args:
        cpus: the machine's CPUs.
        enabled: whether the policy is still in charge.
        conditions: of this proof.
        elders: who was there before the policy.
    """

    cpus: tuple[int, ...]
    enabled: Callable[[], bool]
    conditions: Conditions = PLAIN
    elders: Elders = NO_ELDERS

    def watch(self, seconds: float, every_s: float) -> Iterator[float]:
        """Yield the time (s, CLOCK_MONOTONIC) every `every_s`; end after `seconds`, or when the policy is ejected."""
        deadline = time.monotonic() + seconds
        while (now := time.monotonic()) < deadline and self.enabled():
            yield now
            time.sleep(every_s)


def attached_ground(conditions: Conditions, elders: Elders) -> Ground:
    """The ground under the policy that was attached last; nothing else loads policies in a sealed machine."""
    return Ground(tuple(sorted(os.sched_getaffinity(0))), lambda: STATE.read_text() == "enabled\n", conditions, elders)


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
