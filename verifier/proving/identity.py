"""Who the tasks of the proving ground are: users, names, cgroups and all else that a policy might tell them apart by.

A policy that was proved on tasks of one kind was proved for nobody else. So the crew is mixed: every trait is dealt
out for itself, such that each pair of traits meets by chance only, and half of the crew wears what the policy's own
object compares with.
"""

from __future__ import annotations

import itertools
import os
import random
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from pathlib import Path
from typing import Any, TypeVar

from kernel_bpf.load import linux

NAME_BYTES = 15
"""A task's name: TASK_COMM_LEN in include/linux/sched.h, without its end."""

CGROUPS = Path("/sys/fs/cgroup")
LAST_PID = Path("/proc/sys/kernel/ns_last_pid")

HIGHEST_ID = (1 << 32) - 2
Value = TypeVar("Value", str, int)

LONGEST_S = 400 * 86400
"""No clock is set ahead by more."""

LOWEST_PID, HIGHEST_PID = 300, 30_000
"""Process ids that are free in the proving ground's machine, below the default pid_max of 32,768."""

MOST_WORN = 32
"""So many constants of a kind are kept; an object that has more is not looked at by the others."""

AT_ONCE = {"names": 3, "uids": 3, "gids": 3, "cgroups": 2, "arguments": 2}
"""So many of a kind are worn at once, of all other kinds one: each needs a few tasks to be a group."""

_CGROUP_NAME = re.compile(r"(?!cgroup\.)[A-Za-z0-9_:@-][A-Za-z0-9_.:@-]{0,63}")


class Origin(StrEnum):
    """How a task came to be what it is: a policy may see it at its start, later, or not at all."""

    BEFORE = "before the policy"
    """It was what it is when the policy was attached."""
    FORKED = "changed after its fork"
    """It was forked as the agent's child under the policy, and became what it is then."""
    THREAD = "thread"
    """It is a thread that was started, under the policy, by a process which was what it is."""


@dataclass(frozen=True)
class Worn:
    """What the policy's object compares with, for the crew to wear; every number and name comes from a stranger.

    Args:
        names: of tasks, at most 15 bytes each.
        uids, gids, pids: numbers.
        cgroups: names of folders, each below the root of the hierarchy.
        arguments: command lines, printable, at most 255 characters.
        seconds: times since the policy's load, or the machine's boot, that something happens at.

    Raises:
        ValueError: one of them cannot be worn; `wearable` leaves those out.
    """

    names: tuple[str, ...] = ()
    uids: tuple[int, ...] = ()
    gids: tuple[int, ...] = ()
    pids: tuple[int, ...] = ()
    cgroups: tuple[str, ...] = ()
    arguments: tuple[str, ...] = ()
    seconds: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        for trait, fits in _FITS.items():
            values = getattr(self, trait)
            if len(values) > MOST_WORN or not all(map(fits, values)):
                raise ValueError(f"{trait} that no task can have, or more than {MOST_WORN}: {values!r:.200}")

    def turned(self, turn: int) -> Worn:
        """What comes first is worn; this has the next ones come first, so that each has its turn."""
        moved = {}
        for trait in _FITS:
            values = getattr(self, trait)
            first = turn * AT_ONCE.get(trait, 1) % len(values) if values else 0
            moved[trait] = values[first:] + values[:first]
        return replace(self, **moved)

    def at_once(self, trait: str) -> tuple[Any, ...]:
        """Those of a kind that are worn at the same time."""
        values: tuple[Any, ...] = getattr(self, trait)
        return values[: AT_ONCE.get(trait, 1)]


def _is_name(value: object) -> bool:
    return isinstance(value, str) and "\0" not in value and len(value.encode(errors="replace")) <= NAME_BYTES


def _is_id(value: object) -> bool:
    return type(value) is int and 0 <= value <= HIGHEST_ID


def _is_pid(value: object) -> bool:
    return type(value) is int and LOWEST_PID <= value <= HIGHEST_PID


def _is_cgroup(value: object) -> bool:
    return isinstance(value, str) and bool(_CGROUP_NAME.fullmatch(value))


def _is_argument(value: object) -> bool:
    return isinstance(value, str) and value.isascii() and value.isprintable() and 0 < len(value) < 256


def _is_time(value: object) -> bool:
    return type(value) is int and 0 < value <= LONGEST_S


_FITS: Mapping[str, Callable[[object], bool]] = {
    "names": _is_name, "uids": _is_id, "gids": _is_id, "pids": _is_pid, "cgroups": _is_cgroup,
    "arguments": _is_argument, "seconds": _is_time,
}  # fmt: skip


def wearable(
    names: Iterable[str] = (),
    uids: Iterable[int] = (),
    gids: Iterable[int] = (),
    pids: Iterable[int] = (),
    cgroups: Iterable[str] = (),
    arguments: Iterable[str] = (),
    seconds: Iterable[int] = (),
) -> Worn:
    """Return of these constants the first that a task can have."""
    return Worn(
        _first(names, _is_name),
        _first(uids, _is_id),
        _first(gids, _is_id),
        _first(pids, _is_pid),
        _first(cgroups, _is_cgroup),
        _first(arguments, _is_argument),
        _first(sorted(seconds, reverse=True), _is_time),
    )


def _first(values: Iterable[Value], fits: Callable[[object], bool]) -> tuple[Value, ...]:
    return tuple(itertools.islice(dict.fromkeys(filter(fits, values)), MOST_WORN))


NOTHING_WORN = Worn()


@dataclass(frozen=True)
class Identity:
    """What one task is.

    Args:
        name: as the kernel shows it.
        uid, gid: of its credentials.
        cgroup: its folder below the root of the hierarchy.
        argument: its command line.
        contained: whether it has host name and IPC namespaces of its own.
        high_pid: whether its process id is one of the high ones.
        origin: when it became all this.
    """

    name: str = ""
    uid: int = 0
    gid: int = 0
    cgroup: str = ""
    argument: str = ""
    contained: bool = False
    high_pid: bool = False
    origin: Origin = Origin.FORKED


_USERS = (0, 33, 999, 1000, 65534, 100_000)
_NAMES = ("sshd", "bash", "cc1", "kworker/0:1", "", "fifteen-letters")
_CGROUPS = ("system.slice", "user.slice", "init.scope")
_ARGUMENTS = ("/usr/sbin/sshd -D", "make -j8 all", "java -jar server.jar")
FIRST_HIGH_PID = 20_000


@dataclass(frozen=True)
class Group:
    """Tasks that have something in common, which the others have not.

    Args:
        traits: what it is about; a policy that declares to read one of them is not judged by it.
        label: for people.
        members: numbers of the tasks.
    """

    traits: frozenset[str]
    label: str
    members: frozenset[int] = field(repr=False)


def identities(count: int, seed: int, worn: Worn) -> list[Identity]:
    """Deal out so many identities, each trait for itself: each of its values goes to as many tasks, about."""
    dealer = random.Random(seed)

    def deal(common: Sequence[Any], worn: Sequence[Any] = ()) -> list[Any]:
        """Every value in turn, half of them worn ones if there are any, then shuffled."""
        half = count // 2 if worn else 0
        values = [*itertools.islice(itertools.cycle(worn or common), half)]
        values += itertools.islice(itertools.cycle(common), count - half)
        dealer.shuffle(values)
        return values

    columns = {
        "name": deal(_NAMES, worn.at_once("names")),
        "uid": deal(_USERS, worn.at_once("uids")),
        "gid": deal(_USERS, worn.at_once("gids")),
        "cgroup": deal(_CGROUPS, worn.at_once("cgroups")),
        "argument": deal(_ARGUMENTS, worn.at_once("arguments")),
        "contained": deal((False, False, True)),
        "high_pid": deal((False, True)),
        "origin": [origin_of(number) for number in range(count)],
    }
    return [Identity(**dict(zip(columns, values, strict=True))) for values in zip(*columns.values(), strict=True)]


def origin_of(number: int) -> Origin:
    """The origin of the task with this number: the same whatever else is dealt to it."""
    return tuple(Origin)[number % len(Origin)]


def groups(crew: Sequence[Identity], worn: Worn, least: int = 3) -> list[Group]:
    """Every group of the crew with at least so many members, and so many that are not: by value, and by thresholds.

    What the policy's object compares with is combined, too: it may be after users of one name only.
    """
    conditions = [
        *(_equal("comm", "name", "named {!r}", name) for name in _values(crew, "name")),
        *(_equal("cgroup", "cgroup", "in cgroup {}", folder) for folder in _values(crew, "cgroup")),
        *(_equal("arguments", "argument", "called as {!r}", argument) for argument in _values(crew, "argument")),
        *(_equal("time since load", "origin", "that came as: {}", origin) for origin in _values(crew, "origin")),
        _equal("namespace", "contained", "in namespaces of their own", True),
        _equal("pid", "high_pid", f"of process ids from {first_high_pid(worn)} on", True),
    ]
    for trait in ("uid", "gid"):
        conditions += [_equal(trait, trait, f"of {trait} {{}}", value) for value in _values(crew, trait)]
        conditions += [_from(trait, f"of {trait} {{}} and above", value) for value in _values(crew, trait)]
    made: dict[frozenset[int], Group] = {}
    for trait, label, has in conditions:
        members = frozenset(number for number, identity in enumerate(crew) if has(identity))
        made.setdefault(members, Group(frozenset({trait}), label, members))
    for first, second in itertools.combinations(list(made.values()), 2):
        both = first.members & second.members
        if _is_worn(first, worn) and _is_worn(second, worn) and first.traits != second.traits:
            made.setdefault(both, Group(first.traits | second.traits, f"{first.label} {second.label}", both))
    return [group for members, group in made.items() if least <= len(members) <= len(crew) - least]


def _is_worn(group: Group, worn: Worn) -> bool:
    """Whether a group is about what the policy's object compares with."""
    kinds = {
        "comm": worn.names, "uid": worn.uids, "gid": worn.gids, "cgroup": worn.cgroups, "arguments": worn.arguments,
    }  # fmt: skip
    return any(kinds.get(trait) for trait in group.traits)


_Condition = tuple[str, str, Callable[[Identity], bool]]


def _values(crew: Sequence[Identity], field_name: str) -> list[Any]:
    return list(dict.fromkeys(getattr(identity, field_name) for identity in crew))


def _equal(trait: str, field_name: str, label: str, value: object) -> _Condition:
    return trait, label.format(value), lambda identity: getattr(identity, field_name) == value


def _from(trait: str, label: str, value: int) -> _Condition:
    return trait, label.format(value), lambda identity: getattr(identity, trait) >= value


def wear(identity: Identity) -> None:
    """Become this, as far as a task can change itself; it takes root, and gives it up."""
    (CGROUPS / identity.cgroup / "cgroup.procs").write_text("0")
    if identity.contained:
        linux.unshare(linux.CLONE_NEWUTS | linux.CLONE_NEWIPC)
    linux.set_arguments(identity.argument)
    linux.set_name(identity.name)
    os.setgroups([])
    os.setresgid(identity.gid, identity.gid, identity.gid)
    os.setresuid(identity.uid, identity.uid, identity.uid)


def first_high_pid(worn: Worn) -> int:
    """Where the high process ids begin: where the policy's object draws its line, if it draws one."""
    return worn.pids[0] if worn.pids else FIRST_HIGH_PID


def next_pid(pid: int) -> None:
    """Have the next task get this process id, or the next one that is free."""
    LAST_PID.write_text(str(pid - 1))


def make_cgroups(crew: Sequence[Identity]) -> None:
    """Make the cgroups of these identities, all of the default weight."""
    for identity in crew:
        (CGROUPS / identity.cgroup).mkdir(exist_ok=True)
