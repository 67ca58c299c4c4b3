"""Groups: tasks that do the same, with the same weight, and are somebody else; nobody may fare worse for that.

A crew of mixed identities (verifier/proving/identity.py) works at once, on all CPUs and on single ones. What a task got
is compared with what tasks of its kind of place got, then group with group: all users above 1000 with all others, all
tasks called sshd with all others. Who got what by chance is known from dealing the identities out again: what is the
policy's doing hits the same group then.
"""

from __future__ import annotations

import os
import signal
import statistics
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NoReturn

from verifier.proving import identity, work
from verifier.proving.conservation import wait_for
from verifier.proving.crew import Body, Crew, Record, Task
from verifier.proving.ground import Elders, Ground, Member
from verifier.proving.identity import Group, Identity, Origin, Worn
from verifier.proving.mix import GapWatch
from verifier.proving.oracle import OracleInfo, OracleResult

SIZE, MOST = 18, 96
"""At least three tasks of each of six values, nine on each side of a line."""

EACH_CPU = 6
"""With fewer tasks for each CPU nobody would have to wait."""

SMALL = 6
LOOK_S = 0.04
READY_LIMIT_S = 4.0
STRIDE_NS, STRIDE_LIMIT_S = 25_000_000, 1.0
"""The clock starts once the tasks used so much CPU time on average: most had a turn then."""

ENOUGH_NS, PATIENCE = 120_000_000, 2.0
"""So much CPU time of each task, on average, is to be compared; a busy host is given this multiple of the time."""

LEAST_WAIT_S = 0.3
"""A wait that is longer than the others' by less is no matter: rounds of two dozen tasks take as long."""

MOST_UNEQUAL = 99.0
ROUNDS = 3
"""So often a group must fare worse before the policy fails, each time among others."""

PLAINLY = 4.0
"""Beyond this, two rounds will do."""

GROUPS = OracleInfo(
    "groups", 29, 2.0, "ratio",
    f"how many times as much CPU time, or how much shorter waits, the better off had than the others, where at least"
    f" {SIZE} tasks of equal work and weight are told apart by user, group, name, arguments, cgroup, namespace, process"
    " id or age",
    "They all do the same with the same weight, so each should get the same in the long run, whatever a policy's order"
    " is. A round is short, and some policies serve unevenly by chance or by who came first; so identities are dealt"
    " out again before a group fails, and the smallest of its figures counts. What a policy declares to go by is not"
    " held against it.",
)  # fmt: skip

DAY_S = 86400
AHEAD_S = 30 * DAY_S
MOVED_CLOCK = OracleInfo(
    "moved clock", 29, 2.0, "ratio",
    "the same, after all clocks were set ahead by 30 days while the policy is in charge (CLOCK_MONOTONIC and"
    " CLOCK_BOOTTIME, jiffies and the scheduler's own), and the date by a year",
    "A machine that stood still for a month looks like that, and a policy that goes by what happened lately does not"
    " notice. What counts from the policy's load, from boot or by the date does. The phases behind this one run with"
    " the moved clocks, too.",
)  # fmt: skip

ORACLES = (GROUPS, MOVED_CLOCK)


@dataclass(frozen=True)
class Fare:
    """What one task got.

    Args:
        place: where it may run: tasks of one place are alike.
        cpu_ns: CPU time.
        wait_s: longest time that it went without.
    """

    place: str
    cpu_ns: int
    wait_s: float


def prove(ground: Ground, seconds: float) -> list[OracleResult]:
    """Let the crew work, and compare; a group that fared worse is looked at again among others."""
    return compare(GROUPS, ground, seconds)


def prove_later(ground: Ground, seconds: float) -> list[OracleResult]:
    """Have all clocks set ahead while nobody is at work, then compare again; nothing to see where they stay.

    The policy stays attached: it is a month since it was loaded, and since the machine was booted.
    """
    if not ground.conditions.clock.set_ahead(ahead_s(ground.conditions.worn)):
        return []
    return compare(MOVED_CLOCK, ground, seconds)


def ahead_s(worn: Worn) -> int:
    """A month, or beyond the latest time that the policy's object knows."""
    return min(identity.LONGEST_S, max(AHEAD_S, *(seconds + DAY_S for seconds in worn.seconds), 0))


def compare(info: OracleInfo, ground: Ground, seconds: float) -> list[OracleResult]:
    """Let crews work, one after the other, until no group fares worse in all of them, or in enough of them."""
    suspects: dict[str, float] = {}
    for number in range(ROUNDS):
        crew, fares = fare(ground, seconds, number, ground.conditions.worn)
        if not ground.enabled():
            return []
        figures = unequal(crew, fares, ground.conditions.worn, ground.conditions.reads)
        suspects = worse_again(suspects, figures) if number else figures
        worst = max(suspects.values(), default=1.0)
        if worst <= info.bound or (number and worst > PLAINLY):
            break
    return [judge(info, suspects, rounds=number + 1, size=len(crew))]


def crew_size(cpus: Sequence[int]) -> int:
    """How many tasks the crew of a machine with these CPUs has."""
    return min(MOST, max(SIZE, EACH_CPU * len(cpus)))


@contextmanager
def elders(cpus: Sequence[int], worn: Worn) -> Iterator[Elders]:
    """Start those who are there before the policy is; they wait at their door until they are needed."""
    door = os.pipe()
    with Crew() as crew:
        dealt = identity.identities(crew_size(cpus), 0, worn)
        identity.make_cgroups(dealt)
        high = identity.first_high_pid(worn)
        yield Elders(start_all(crew, dealt, cpus, door[0], high, lambda who: who.origin is Origin.BEFORE), door[1])
    for end in door:
        os.close(end)


def start_all(
    crew: Crew,
    dealt: Sequence[Identity],
    cpus: Sequence[int],
    door: int,
    first_high: int,
    whom: Callable[[Identity], bool],
) -> tuple[Member, ...]:
    """Start some of these identities as tasks that wait at a door."""
    members = []
    for number, who in enumerate(dealt):
        place, allowed = place_of(number, cpus)
        if whom(who):
            if who.high_pid:
                identity.next_pid(first_high + number)
            members.append(Member(who, place, crew.start(str(who), as_somebody(who, allowed, door))))
    return tuple(members)


def place_of(number: int, cpus: Sequence[int]) -> tuple[str, Sequence[int]]:
    """Half of the crew may run anywhere, the rest on the first or on the last CPU only."""
    if number % 4 in (0, 2):
        return "anywhere", cpus
    home = cpus[0] if number % 4 == 1 else cpus[-1]
    return f"on CPU {home}", [home]


def as_somebody(who: Identity, cpus: Sequence[int], door: int) -> Body:
    """Become this, wait at the door, then work; in a thread of its own if it is to be one."""

    def work_there(record: Record) -> None:
        os.sched_setaffinity(0, cpus)
        work.through(door, work.worker)(record)

    def run(record: Record) -> NoReturn:
        identity.wear(who)
        (work.in_thread(work_there) if who.origin is Origin.THREAD else work_there)(record)
        raise AssertionError("a worker ended")

    return run


def fare(ground: Ground, seconds: float, seed: int, worn: Worn) -> tuple[list[Identity], list[Fare]]:
    """Complete the crew, let all of it work for `seconds`, and return who got what."""
    dealt = identity.identities(crew_size(ground.cpus), seed, worn)
    high = identity.first_high_pid(worn)
    identity.make_cgroups(dealt)
    door = os.pipe()
    with Crew() as crew:
        young = start_all(crew, dealt, ground.cpus, door[0], high, lambda who: who.origin is not Origin.BEFORE)
        members = [*ground.elders.members, *young]
        wait_for(ground, [member.task for member in members], limit_s=READY_LIMIT_S)
        os.write(door[1], b"x" * len(young))
        with working(ground.elders):
            fares = watch(ground, members, seconds)
    for end in door:
        os.close(end)
    return [member.identity for member in members], fares


@contextmanager
def working(elders: Elders) -> Iterator[None]:
    """Let those work who were there before the policy; they came through their door once, and are stopped since."""
    os.write(elders.door, b"x" * sum(member.task.record.events == 1 for member in elders.members))
    for member in elders.members:
        os.kill(member.task.pid, signal.SIGCONT)
    try:
        yield
    finally:
        for member in elders.members:
            os.kill(member.task.pid, signal.SIGSTOP)


def watch(ground: Ground, members: Sequence[Member], seconds: float) -> list[Fare]:
    """Let the crew come to its stride, watch it for `seconds` and what it needs for a few rounds; return what each got.

    A busy host makes rounds longer, and who happened to come first would look favoured.
    """
    tasks = [member.task for member in members]
    for task in tasks:
        task.follow()
    until_used(ground, tasks, STRIDE_NS, STRIDE_LIMIT_S)
    for task in tasks:  # those whose thread had not begun yet
        task.follow()
    before_ns, gaps = [task.cpu_ns() for task in tasks], GapWatch(tasks)
    for _now in ground.watch(seconds, LOOK_S):
        gaps.look()
    used_ns = [task.cpu_ns() - before for task, before in zip(tasks, before_ns, strict=True)]
    until_used(ground, tasks, ENOUGH_NS - sum(used_ns) // len(tasks), PATIENCE * seconds, gaps.look)
    gaps.look()
    return [
        Fare(member.place, member.task.cpu_ns() - before, gaps.gaps[member.task].longest_s)
        for member, before in zip(members, before_ns, strict=True)
    ]


def until_used(
    ground: Ground, tasks: Sequence[Task], cpu_ns: int, limit_s: float, look: Callable[[], None] = lambda: None
) -> None:
    """Wait until these tasks have used so much CPU time on average, `limit_s` at most; look now and then."""
    enough_ns = sum(task.cpu_ns() for task in tasks) + cpu_ns * len(tasks)
    for _now in ground.watch(limit_s, LOOK_S):
        look()
        if sum(task.cpu_ns() for task in tasks) >= enough_ns:
            return


def unequal(crew: Sequence[Identity], fares: Sequence[Fare], worn: Worn, reads: Collection[str]) -> dict[str, float]:
    """Return by how much each group fared otherwise than all others, the figures of the oracle."""
    shares = among_equals(fares, lambda got: got.cpu_ns)
    figures = {}
    for group in identity.groups(crew, worn):
        if not group.traits & {*reads}:
            figures[group.label] = max(share_ratio(group, shares), wait_ratio(group, fares))
    return figures


def among_equals(fares: Sequence[Fare], figure: Callable[[Fare], float]) -> list[float]:
    """What each task got, as a multiple of what the tasks of its place got on average."""
    mean = {}
    for place in {got.place for got in fares}:
        mean[place] = statistics.fmean(figure(got) for got in fares if got.place == place)
    return [figure(got) / mean[got.place] if mean[got.place] else 1.0 for got in fares]


def share_ratio(group: Group, shares: Sequence[float]) -> float:
    """How many times as much the better off of the two sides got as the other."""
    return min(ratio(max(sides), min(sides)) for sides in both_sides(group, shares))


def wait_ratio(group: Group, fares: Sequence[Fare]) -> float:
    """How many times as long the longer waits of the two sides are; 1 if the difference is no matter."""
    sides = both_sides(group, [got.wait_s for got in fares])
    return min(ratio(max(pair), min(pair)) if max(pair) - min(pair) > LEAST_WAIT_S else 1.0 for pair in sides)


def both_sides(group: Group, values: Sequence[float]) -> list[tuple[float, float]]:
    """What is usual for the group and for all others: the mean, and of a small group the median as well.

    One of three may have had bad luck, and takes the mean of them with it.
    """
    inside = [value for number, value in enumerate(values) if number in group.members]
    outside = [value for number, value in enumerate(values) if number not in group.members]
    sides = [(statistics.fmean(inside), statistics.fmean(outside))]
    if min(len(inside), len(outside)) < SMALL:
        sides.append((statistics.median(inside), statistics.median(outside)))
    return sides


def ratio(larger: float, smaller: float) -> float:
    """Their quotient, as far as it can be said."""
    return min(MOST_UNEQUAL, larger / smaller) if smaller else MOST_UNEQUAL if larger else 1.0


def worse_again(before: dict[str, float], now: dict[str, float]) -> dict[str, float]:
    """The groups that were beyond the bound before, each with the smaller of its figures; 1 if it came about once."""
    return {label: min(figure, now.get(label, 1.0)) for label, figure in before.items() if figure > GROUPS.bound}


def judge(info: OracleInfo, figures: dict[str, float], rounds: int, size: int) -> OracleResult:
    """Judge the group that fared most unequally."""
    label = max(figures, key=lambda name: figures[name], default="")
    worst = figures.get(label, 1.0)
    detail = f"tasks {label} and the others differ most, {worst:.2f} to 1, in {rounds} rounds of {size} tasks"
    return info.judge(worst, detail)
