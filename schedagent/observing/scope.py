"""What is watched: a process tree, a cgroup (of a unit, of a container), or the machine."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from kernel_bpf.observe.sched_probe import Scope
from kernel_bpf.observe.tasks import cgroup_root, processes, tree_of
from schedagent.core import accept
from schedagent.core.deployment import Where
from schedagent.core.errors import SetupError, UsageError
from schedagent.core.process import proc

MOST_FOLDERS = 65536
_CONTAINER = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,127}")
_CONTAINER_ID = re.compile(r"[0-9a-f]{64}")
_UNIT = re.compile(r"[A-Za-z0-9:_.\\@-]{1,255}")
_ENGINES = ("docker", "podman")
_ENGINE_TIMEOUT_S = 10


@dataclass(frozen=True)
class Target:
    """What is watched; of pid and cgroup one at most, without both the machine.

    Args:
        pid: first process of a tree.
        cgroup: path below the root of cgroups.
    """

    pid: int = 0
    cgroup: str = ""

    @property
    def words(self) -> str:
        """What it is, for people."""
        if self.pid:
            return f"process {self.pid} and its descendants"
        return f"cgroup {self.cgroup}" if self.cgroup else "the machine"


def check(target: Target, root: Path | None = None) -> None:
    """Raise UsageError if what is to be watched is not there."""
    if target.pid and target.pid not in processes():
        raise UsageError(f"there is no process {target.pid}", "list processes: ps -e")
    if target.cgroup:
        folder(target.cgroup, root)


def folder(cgroup: str, root: Path | None = None) -> Path:
    """Return the folder of a cgroup; raise UsageError if there is none."""
    try:
        accept.cgroup(cgroup)
    except ValueError as error:
        raise UsageError("that is no name of a cgroup", f"accepted: {error}") from None
    place = (root or cgroup_root()) / cgroup.lstrip("/")
    if not (place / "cgroup.procs").exists():
        raise UsageError(f"there is no cgroup {cgroup}", "list them: systemd-cgls")
    return place


def where(target: Target) -> Where:
    """Return the scope as kernel_bpf.observe.tasks takes it; raise UsageError if the process ended."""
    if target.pid:
        tree = tree_of(target.pid)
        if tree is None:
            raise UsageError(f"there is no process {target.pid}", "list processes: ps -e")
        return tree
    return target.cgroup


def probe_scope(target: Target) -> Scope:
    """Return the scope as the probe takes it: a cgroup's id is the inode number of its folder (kernfs)."""
    if target.pid:
        return Scope(pid=target.pid)
    return Scope(cgroup_id=folder(target.cgroup).stat().st_ino) if target.cgroup else Scope()


def of_unit(name: str, root: Path | None = None) -> Target:
    """Return the cgroup of a systemd unit, which has its name; without a suffix it is a service.

    Raises:
        UsageError: there is none, or several, as of users' instances.
    """
    if not _UNIT.fullmatch(name):
        raise UsageError("that is no name of a unit", "accepted: such as nginx.service")
    full = name if "." in name else f"{name}.service"
    return _only(f"unit {full}", lambda place: place.name == full, "it runs nothing now: systemctl status", root)


def of_container(name: str, root: Path | None = None) -> Target:
    """Return the cgroup of a container of docker, podman, Kubernetes (by its id), LXC or systemd-nspawn.

    Raises:
        UsageError: there is none.
    """
    if not _CONTAINER.fullmatch(name):
        raise UsageError("that is no name of a container", "accepted: letters, digits, and _ . -")
    own = {f"lxc.payload.{name}", f"machine-{name}.scope", f"systemd-nspawn@{name}.service"}
    identity = _engine_id(name)

    def is_its(place: Path) -> bool:
        return place.name in own or (bool(identity) and identity in place.name)

    return _only(f"container {name}", is_its, "list them: docker ps, podman ps, machinectl", root)


def _engine_id(name: str) -> str:
    """Return a container's id as docker or podman has it; an id itself, or its beginning of 12 digits, stands."""
    if re.fullmatch(r"[0-9a-f]{12,64}", name):
        return name
    for engine in _ENGINES:
        words = [engine, "inspect", "--type", "container", "--format", "{{.Id}}", name]
        try:
            asked_for = proc.run(words, timeout_s=_ENGINE_TIMEOUT_S)
        except SetupError:  # it is not installed, or hangs
            continue
        identity = asked_for.stdout.decode(errors="replace").strip()
        if asked_for.returncode == 0 and _CONTAINER_ID.fullmatch(identity):
            return identity
    return ""


def _only(what: str, is_its: Callable[[Path], bool], hint: str, root: Path | None) -> Target:
    root = root or cgroup_root()
    places = [place for place in _folders(root) if is_its(place)]
    outermost = [place for place in places if not any(other in place.parents for other in places)]
    if not outermost:
        raise UsageError(f"{what} has no cgroup", hint)
    paths = [f"/{place.relative_to(root)}" for place in outermost]
    if len(paths) > 1:
        raise UsageError(f"{what} has {len(paths)} cgroups", f"name one: --cgroup {paths[0]}")
    return Target(cgroup=paths[0])


def _folders(root: Path) -> Iterator[Path]:
    """Yield the folders of all cgroups, the upper ones first."""
    waiting, seen = [root], 0
    while waiting and seen < MOST_FOLDERS:
        place = waiting.pop(0)
        try:
            below = [entry for entry in place.iterdir() if entry.is_dir() and not entry.is_symlink()]
        except OSError:  # it went away
            continue
        seen += len(below)
        yield from below
        waiting += below
