"""Schedulers with a loader of their own: what is known of the well-known ones, and which of them are installed here.

What is known stands in bpf/schedulers.toml, whether a scheduler is installed or not.
"""

from __future__ import annotations

import functools
import os
import shlex
import tomllib
from collections.abc import Collection, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from kernel_bpf import BPF
from schedagent.core.errors import UsageError
from schedagent.core.policies.program import SchedulerProgram, digest_of
from schedagent.core.trials.workload import Goal, WorkloadClass

MANIFESTS = BPF / "schedulers.toml"
PREFIX = "scx_"
"""Their names begin so, by convention of the field."""

FOLDERS = ("/usr/local/sbin", "/usr/sbin", "/usr/local/bin", "/usr/bin")
"""Looked at after PATH: they run as root, so they may lie where users do not look."""


@dataclass(frozen=True)
class ProgramInfo:
    """What is known of a scheduler that loads its policy itself.

    Args:
        name: of the program.
        description: one sentence.
        target_workloads: WorkloadClass values it suits, best first; none: it is never tried unasked.
        algorithm, limitations: how it decides, and when it loses.
        needs: why it is not tried unasked.
        modes: arguments by goal.
        rank: its place among the known, the best first.
    """

    name: str
    description: str
    target_workloads: tuple[str, ...]
    algorithm: str
    limitations: str
    needs: str = ""
    modes: Mapping[Goal, tuple[str, ...]] = field(default_factory=dict)
    rank: int = 0

    def arguments(self, goal: Goal) -> tuple[str, ...]:
        """Return what it is given in a run with this goal."""
        return self.modes.get(goal, ())


@functools.cache
def known_programs() -> Mapping[str, ProgramInfo]:
    """Return the well-known schedulers by name, in the order of their file."""
    tables = tomllib.loads(MANIFESTS.read_text(encoding="utf-8"))
    return {name: _read(name, table, rank) for rank, (name, table) in enumerate(tables.items())}


def _read(name: str, table: Mapping[str, object], rank: int) -> ProgramInfo:
    fields = dict(table)
    kinds = [WorkloadClass(kind).value for kind in fields.pop("target_workloads")]  # type: ignore[attr-defined]
    modes = {Goal(goal): tuple(shlex.split(text)) for goal, text in fields.pop("modes", {}).items()}  # type: ignore[attr-defined]
    return ProgramInfo(name=name, target_workloads=tuple(kinds), modes=modes, rank=rank, **fields)  # type: ignore[arg-type]


@dataclass(frozen=True)
class InstalledPrograms:
    """The schedulers of this host.

    Args:
        folders: where they are looked for, the first one first.
    """

    folders: tuple[Path, ...]

    @classmethod
    def of_path(cls, path: str) -> InstalledPrograms:
        """Return those in the folders of a PATH variable, and where root's programs usually are."""
        absolute = [folder for folder in [*path.split(os.pathsep), *FOLDERS] if folder.startswith("/")]
        return cls(tuple(map(Path, dict.fromkeys(absolute))))

    def find(self, name: str) -> Path | None:
        """Return the program of a name; None if no folder has one that can be executed."""
        return next((folder / name for folder in self.folders if _is_executable(folder / name)), None)

    def program(self, name: str, arguments: Collection[str]) -> SchedulerProgram | None:
        """Return a scheduler by its name, ready to be tried; None if there is none, or it cannot be."""
        path = self.find(name)
        try:
            return read_program(path, tuple(arguments)) if path else None
        except UsageError:
            return None

    def names(self) -> list[str]:
        """Return the names of all of them, sorted."""
        return sorted(set(self._names()))

    def _names(self) -> Iterator[str]:
        for folder in self.folders:
            with suppress(OSError):  # a folder of others, or none
                for entry in os.scandir(folder):
                    if entry.name.startswith(PREFIX) and entry.name.isprintable() and _is_executable(Path(entry.path)):
                        yield entry.name


@dataclass(frozen=True)
class ListedProgram:
    """A scheduler with a loader of its own, as lists show it.

    Args:
        info: what is known of it.
        path: where it is installed; empty if it is not.
    """

    info: ProgramInfo
    path: str

    @property
    def standing(self) -> str:
        """Whether it is here, in words."""
        return "installed" if self.path else "not installed"


def _is_executable(path: Path) -> bool:
    """Whether this user could start a file; not, if that cannot even be seen."""
    try:
        return path.is_file() and os.access(path, os.X_OK)
    except OSError:
        return False


def list_programs(installed: InstalledPrograms) -> dict[str, ListedProgram]:
    """Return the well-known schedulers by name, and those that are installed though nothing is known of them."""
    known = known_programs()
    others = (name for name in installed.names() if name not in known)
    every = [*known.values(), *(ProgramInfo(name, _UNKNOWN, (), "not known", "not known") for name in others)]
    return {info.name: ListedProgram(info, str(installed.find(info.name) or "")) for info in every}


_UNKNOWN = "A program of this host; nothing more is known of it."


def read_program(path: Path, arguments: tuple[str, ...]) -> SchedulerProgram:
    """Return a program as a run knows it: by its content.

    Raises:
        UsageError: it is not there, is no program, cannot be read, or is a script, which starts something else.
    """
    place = path.absolute()
    try:
        if not place.exists():
            raise UsageError(f"the scheduler {path} is not there", "check its path, or install it")
        if not place.is_file():
            raise UsageError(f"the scheduler {path} is no regular file", "give the program")
        if not os.access(place, os.X_OK):
            raise UsageError(f"the scheduler {path} is not executable", f"chmod +x {shlex.quote(str(path))}")
        with place.open("rb") as file:
            start = file.read(4)
        digest = digest_of(place)
    except OSError as error:
        raise UsageError(f"the scheduler {path} cannot be read: {error.strerror}") from None
    if start[:2] == b"#!":
        hint = "give the program that it starts: results are kept by a program's content, and a script's says little"
        raise UsageError(f"the scheduler {path} is a script", hint)
    if start != b"\x7fELF":
        raise UsageError(f"the scheduler {path} is no program", "give an executable, or a source NAME.bpf.c")
    return SchedulerProgram(str(place), arguments, digest)
