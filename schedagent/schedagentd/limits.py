"""Which cgroups of this machine have limits that a policy would ignore, and what each would lose. It asks, and changes
nothing.

The kernel hands cpu.weight, cpu.idle and cpu.max to the policy that schedules everything (rule 31): one that does not
keep them ends them without a word.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from schedagent.core.errors import Refused
from schedagent.core.terminal.foreign import quote

CGROUPS = Path("/sys/fs/cgroup")
CGROUP_WEIGHTS, CGROUP_LIMITS = "cgroup weights", "cgroup limits"
"""core.policies.policy's words, which is not imported here; a test holds them equal."""

MOST_CGROUPS, MOST_DEPTH = 10_000, 32
MOST_NAMED = 5
_LONGEST_VALUE = 64

_FILES: Mapping[str, tuple[str, Callable[[str], bool]]] = {
    "cpu.max": (CGROUP_LIMITS, lambda value: value.split()[:1] != ["max"]),
    "cpu.weight": (CGROUP_WEIGHTS, lambda value: value != "100"),
    "cpu.idle": (CGROUP_WEIGHTS, lambda value: value != "0"),
}
"""File -> the word of a policy that does not keep it, and whether a value is a limit."""


@dataclass(frozen=True)
class CgroupLimit:
    """A limit that is set.

    Args:
        cgroup: its path, as the kernel has it: text of whoever made it.
        file: of cpu.max, cpu.weight and cpu.idle.
        value: what stands there.
    """

    cgroup: str
    file: str
    value: str

    @property
    def word(self) -> str:
        """What a policy that does not keep it declares."""
        return _FILES[self.file][0]

    def __str__(self) -> str:
        return f"{quote(self.cgroup)} would lose {self.file} {quote(self.value)}"


def cgroup_limits(root: Path = CGROUPS) -> tuple[CgroupLimit, ...]:
    """Return the limits that are set below the root of the cgroups (v2).

    Raises:
        Refused: there are more cgroups, or deeper ones, than are looked at: nothing is known of the rest.
    """
    limits: list[CgroupLimit] = []
    for looked, folder in enumerate(_folders(root, 0)):
        if looked >= MOST_CGROUPS:
            raise Refused(f"there are more than {MOST_CGROUPS} cgroups: whether limits are set is not known", HINT)
        limits += _limits_of(root, folder)
    return tuple(limits)


HINT = "to run the policy all the same: --accept cgroup-limits"


def check_limits(limits: Sequence[CgroupLimit], declares: Collection[str]) -> None:
    """Refuse a policy that would end limits of this machine.

    Args:
        declares: what the policy's token says it does not seek.

    Raises:
        Refused: naming the cgroups and what each would lose.
    """
    lost = [limit for limit in limits if limit.word in declares]
    if not lost:
        return
    more = f"; and {len(lost) - MOST_NAMED} more" if len(lost) > MOST_NAMED else ""
    named = "; ".join(map(str, lost[:MOST_NAMED]))
    raise Refused(
        f"the policy does not keep the limits of cgroups: {named}{more}", f"take one that keeps them, or {HINT}"
    )


def _folders(folder: Path, depth: int) -> Iterator[Path]:
    """Yield the folders below one, parents first; a cgroup that goes away meanwhile is left out."""
    if depth >= MOST_DEPTH:
        raise Refused(f"cgroups lie more than {MOST_DEPTH} deep: whether limits are set there is not known", HINT)
    try:
        inner = sorted(path for path in folder.iterdir() if path.is_dir() and not path.is_symlink())
    except OSError:
        return
    for path in inner:
        yield path
        yield from _folders(path, depth + 1)


def _limits_of(root: Path, folder: Path) -> Iterator[CgroupLimit]:
    for file, (_word, is_limit) in _FILES.items():
        try:
            with (folder / file).open("rb") as content:
                value = content.read(_LONGEST_VALUE).decode(errors="replace").strip()
        except OSError:
            continue
        if value and is_limit(value):
            yield CgroupLimit(f"/{folder.relative_to(root)}", file, value)
