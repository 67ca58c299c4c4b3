"""What only a guest of several nodes, caches and threads shows: work bound to each of these, and wake-ups in the last.

A flat guest of two CPUs has one of each, so a queue that nobody drains, a table that is too short and a mask of which
only the first bits are read look sound there. The work is the least that reaches every CPU, cache and node: everything
else was seen on the flat guest. Its CPUs are often more than the host's, so bounds in seconds are stretched: how far is
Conditions.stretch.
"""

from __future__ import annotations

import os
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import NoReturn

from kernel_bpf.load.sched_ext import LoadedPolicy
from kernel_bpf.observe.system import cpus_in
from verifier.proving import conservation, lifecycle, mix, work
from verifier.proving.crew import REAP_LIMIT_S, Body, Crew, Record, Task
from verifier.proving.ground import Ground
from verifier.proving.oracle import OracleResult

SYSTEM = Path("/sys/devices/system")
LOOK_S = 0.1
OPEN_S = 0.8
"""A task that has waited for so long when the time is over is watched until it runs, or its bound is over."""

DOMAIN_ORACLES = (mix.STARVATION, mix.AFFINITY, mix.KWORKERS, mix.WAKEUPS)
SPREAD_ORACLES = conservation.ORACLES
HOTPLUG_ORACLES = (lifecycle.CPU_HOTPLUG,)

LEAST_DOMAINS_S = mix.STARVATION_BOUND_S + 0.2


def domains(system: Path = SYSTEM) -> dict[str, tuple[int, ...]]:
    """What the kernel says of its CPUs: name -> CPUs of each node and last-level cache, the last ones first.

    What holds every CPU, or a single one, is left out: it is no place of its own.
    """
    online = cpus_in((system / "cpu/online").read_text())
    files = {"node": "node/node*/cpulist", "cache": "cpu/cpu*/cache/index3/shared_cpu_list"}
    seen = {
        f"{kind} of CPUs {path.read_text().strip()}": cpus_in(path.read_text())
        for kind, pattern in files.items()
        for path in system.glob(pattern)
    }
    places = sorted(seen.items(), key=lambda item: item[1], reverse=True)
    return {name: cpus for name, cpus in places if 1 < len(cpus) < len(online)}


@dataclass(frozen=True)
class Bound:
    """Tasks that are bound to a part of the machine.

    Args:
        hungry: those that want a CPU all the time, and the CPUs that each may use.
        sleepers: one in each part.
        flipper: goes from CPU to CPU.
        refresher: waits for a kernel worker on every CPU.
    """

    hungry: Mapping[Task, Collection[int]]
    sleepers: Sequence[Task]
    flipper: Task
    refresher: Task

    @property
    def watched(self) -> list[Task]:
        return [*self.hungry, self.flipper]


def prove_domains(ground: Ground, seconds: float) -> list[OracleResult]:
    """Hogs on every CPU, cache and node, and what moves or sleeps among them; see to it that each of them runs."""
    stretch = ground.conditions.stretch
    with Crew(REAP_LIMIT_S * stretch) as crew, a_door() as door:
        bound = start(crew, ground.cpus, domains(), door)
        os.write(door[1], b"x" * len(bound.watched))
        watch, misplaced = observe(ground, bound, seconds, mix.STARVATION_BOUND_S * stretch)
        results = judge(bound, watch, misplaced, stretch)
    if crew.undead:
        late = f"killed tasks did not get the CPU time to die: {', '.join(crew.undead)}"
        return [mix.STARVATION.stretched(stretch).fail(REAP_LIMIT_S * stretch, late), *results[1:]]
    return results


@contextmanager
def a_door() -> Iterator[tuple[int, int]]:
    """A pipe to wait at: forking is slow where hogs run already."""
    door = os.pipe()
    try:
        yield door
    finally:
        for end in door:
            os.close(end)


def start(crew: Crew, cpus: Sequence[int], places: Mapping[str, Sequence[int]], door: tuple[int, int]) -> Bound:
    """Start every task; the hogs and the one that moves wait at the door."""
    hog = work.through(door[0], work.hog)
    own_cpu = {f"pinned to CPU {cpu}": [cpu] for cpu in cpus}
    parts = {**own_cpu, **{f"in {name}": own for name, own in places.items()}, "free": cpus}
    hungry = {crew.start(f"hog {where}", within(own, hog)): own for where, own in parts.items()}
    return Bound(
        hungry=hungry,
        sleepers=[crew.start(f"sleeper in {name}", within(own, work.sleeper)) for name, own in places.items()],
        flipper=crew.start("affinity changes", work.through(door[0], work.affinity_flipper(cpus))),
        refresher=crew.start("statistics refresh", work.real_time(work.stat_refresher)),
    )


def within(cpus: Sequence[int], body: Body) -> Body:
    """`body`, on these CPUs only."""

    def run(record: Record) -> NoReturn:
        os.sched_setaffinity(0, cpus)
        body(record)

    return run


def observe(ground: Ground, bound: Bound, seconds: float, limit_s: float) -> tuple[mix.GapWatch, int]:
    """Look until the time is over and nobody is waiting long; return the gaps, and how often a task was elsewhere.

    Args:
        limit_s: nobody is watched for longer than that since it last ran.
    """
    watch, misplaced = mix.GapWatch(bound.watched), 0
    until = time.monotonic() + seconds
    for now in ground.watch(seconds + limit_s, LOOK_S):
        watch.look()
        misplaced += sum(task.cpu() not in own for task, own in bound.hungry.items() if task.turns())
        waiting = watch.longest_open(now)
        if now > until and (waiting < OPEN_S or waiting > limit_s):
            break
    watch.look()
    return watch, misplaced


def judge(bound: Bound, watch: mix.GapWatch, misplaced: int, stretch: float) -> list[OracleResult]:
    """Apply the oracles that the mix has, with stretched bounds."""
    flipped, moves = watch.longest([bound.flipper]), bound.flipper.record
    stuck = flipped > mix.STARVATION_BOUND_S * stretch or not moves.events
    elsewhere = f"{moves.events} moves, {moves.wrong} of which ended elsewhere; others were elsewhere {misplaced} times"
    return [
        mix.gap_result(mix.STARVATION.stretched(stretch), watch, list(bound.hungry)),
        mix.AFFINITY.judge(moves.wrong + misplaced + stuck, elsewhere),
        mix.latency_result(mix.KWORKERS.stretched(stretch), [bound.refresher], "refreshes"),
        mix.latency_result(mix.WAKEUPS.stretched(stretch), bound.sleepers, "wake-ups"),
    ]


def prove_spread(ground: Ground, seconds: float) -> list[OracleResult]:
    """Hogs on the last CPU that may use all of them, then wake-ups in its cache or node beside a CPU that idles."""
    everywhere = replace(ground, cpus=ground.cpus[::-1])
    last = next(iter(domains().values()), ground.cpus)
    with Crew() as crew:
        idle = conservation.idle_share(everywhere, crew, seconds / 2)
    with Crew() as crew:
        waits_ns = conservation.wakeup_waits(replace(ground, cpus=last[::-1]), crew, seconds / 2)
    return [conservation.judge(idle, waits_ns)]


def cpu_hotplug(policy: LoadedPolicy, seconds: float, stretch: float) -> list[OracleResult]:
    """Take the last CPU away from tasks in its cache and node, and give it back; end the policy."""
    return lifecycle.cpu_hotplug(policy, seconds, stretch, partial(start_around, places=domains()))


def start_around(crew: Crew, places: Mapping[str, Sequence[int]]) -> list[Task]:
    """Hogs: on the last CPU, in its cache and its node, and one that is free."""
    last = lifecycle.last_cpu()
    around = {name: own for name, own in places.items() if last in own}
    bound = [crew.start(f"hog in {name}", within(own, work.hog)) for name, own in around.items()]
    return [crew.start(f"pinned to CPU {last}", work.pinned(last, work.hog)), *bound, crew.start("free", work.hog)]
