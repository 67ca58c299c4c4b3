"""Folders of a cache: entries by name, size and last use. No link is followed, and foreign names are left alone."""

from __future__ import annotations

import os
import re
import shutil
import stat
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from schedagent.core.retention.limits import IN_USE_S, Keeper, Limit

_DAY_S = 86400.0
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


@dataclass(frozen=True)
class Entry:
    """A file, or a folder with all that is in it.

    Args:
        name: in its folder.
        bytes: that it takes on the disk.
        used_at: Unix time of its last use.
    """

    name: str
    bytes: int
    used_at: float


def mark_used(*paths: Path) -> None:
    """Note that these are used now; a cache that may not be written to is used all the same."""
    for path in paths:
        with suppress(OSError):
            os.utime(path)


def entries(folder: Path, names: re.Pattern[str], *, folders: bool = False) -> list[Entry]:
    """Return the files of a folder whose names match, or the folders in it; empty if there is no such folder."""
    with _opened(folder) as descriptor:
        return [] if descriptor is None else list(_entries(descriptor, names, folders))


def remove(folder: Path, name: str) -> bool:
    """Remove a file, or a folder with all that is in it, links in it as links; return whether it is gone."""
    with _opened(folder) as descriptor:
        if descriptor is None:
            return False
        try:
            if stat.S_ISDIR(os.stat(name, dir_fd=descriptor, follow_symlinks=False).st_mode):
                shutil.rmtree(name, dir_fd=descriptor)
            else:
                os.unlink(name, dir_fd=descriptor)
        except FileNotFoundError:
            return True
        except OSError:
            return False
    return True


def in_excess(present: Sequence[Entry], limit: Limit, now: float) -> list[Entry]:
    """Return what has to go, least recently used first, so that no more is left than the limit allows.

    What was used in the last hour stays: somebody may work with it now. An age that only `prune` enforces is its own.
    """
    excess: list[Entry] = []
    count, size = len(present), sum(entry.bytes for entry in present)
    for entry in sorted(present, key=lambda entry: entry.used_at):
        too_many = limit.count and count > limit.count
        too_large = limit.mib and size > limit.mib << 20
        too_old = limit.keeper is not Keeper.PRUNE and limit.days and entry.used_at < now - limit.days * _DAY_S
        if entry.used_at > now - IN_USE_S or not (too_many or too_large or too_old):
            break
        excess.append(entry)
        count, size = count - 1, size - entry.bytes
    return excess


def trim(folder: Path, names: re.Pattern[str], limit: Limit, *, folders: bool = False) -> None:
    """Remove the least recently used entries of a cache beyond its limit."""
    for entry in in_excess(entries(folder, names, folders=folders), limit, time.time()):
        remove(folder, entry.name)


@contextmanager
def _opened(folder: Path) -> Iterator[int | None]:
    """Open a folder that is no link; None if there is none."""
    try:
        descriptor = os.open(folder, _FOLDER)
    except OSError:
        yield None
        return
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _entries(folder: int, names: re.Pattern[str], folders: bool) -> Iterator[Entry]:
    with os.scandir(folder) as listed:
        for item in listed:
            with suppress(OSError):  # it has just gone
                wanted = item.is_dir(follow_symlinks=False) if folders else item.is_file(follow_symlinks=False)
                if wanted and names.fullmatch(item.name):
                    status = item.stat(follow_symlinks=False)
                    size = _size(folder, item.name) if folders else status.st_blocks * 512
                    yield Entry(item.name, size, status.st_mtime)


def _size(folder: int, name: str) -> int:
    """Return what a folder takes on the disk; a snapshot is mostly holes."""
    size = 0
    for _path, _folders, files, descriptor in os.fwalk(name, dir_fd=folder):
        for file in files:
            with suppress(OSError):
                size += os.stat(file, dir_fd=descriptor, follow_symlinks=False).st_blocks * 512
    return size
