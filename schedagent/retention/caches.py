"""The cache folder: what was not used for long, or is more than its limit. All of it can be made again."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Collection, Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, replace

from kernel_bpf.build import compile as objects
from kernel_bpf.build import syntax as headers
from kernel_bpf.build import target as types
from repo_store.retention.unneeded import Question
from schedagent.core.errors import UsageError
from schedagent.core.retention.folder import Entry, entries, in_excess, remove
from schedagent.core.retention.limits import IN_USE_S, RETENTION
from schedagent.core.retention.lock import locked
from schedagent.core.settings import Settings
from verifier import report_cache as reports
from verifier.microvm import image as snapshots
from verifier.microvm.kernels import find_kernels, release_order

_DAY_S = 86400.0
_LOCK = re.compile(r"[0-9a-f]{24}\.lock")
_PARTIAL = re.compile(r"\.partial(-[A-Za-z0-9_]+)?")
_PROBE = re.compile(r"kvm\.[0-9]+")
_APT = re.compile(r"apt-[a-z]+")
_RELEASE = re.compile(r"[0-9][0-9A-Za-z.+~_-]*")


@dataclass(frozen=True)
class Place:
    """A folder of the cache.

    Args:
        kind: name in RETENTION of what is in it.
        folder: below the cache folder; empty for itself.
        names: of the entries.
        folders: whether they are folders.
        lock: file in the folder that who writes there holds.
    """

    kind: str
    folder: str
    names: re.Pattern[str]
    folders: bool = False
    lock: str = ""


_PLACES = (
    Place("snapshots", "snapshots", snapshots.ENTRY, folders=True),
    Place("objects", "objects", objects.ENTRY),
    Place("reports", "reports", reports.ENTRY),
    Place("headers", "pch", headers.ENTRY),
    Place("types", "btf", types.ENTRY, folders=True, lock=".lock"),
    Place("kernels", "kernels", _RELEASE, folders=True, lock=".lock"),
    Place("apt", "", _APT, folders=True),
    Place("locks", "snapshots", _LOCK),
    Place("leftovers", "", _PROBE),
    Place("leftovers", "kernels", _PARTIAL, folders=True, lock=".lock"),
    *(Place("leftovers", folder, _PARTIAL, folders=True) for folder in ("objects", "reports", "pch", "btf")),
)


def unused(settings: Settings, question: Question, kernels: Collection[str]) -> Mapping[str, tuple[Entry, ...]]:
    """Return what may go of the cache folder, by kind; the name of each is its path.

    Args:
        kernels: releases that runs need.
    """
    needed = {*kernels, *_standard_kernels(settings)}
    kinds: dict[str, tuple[Entry, ...]] = {}
    for place in _PLACES:
        old = [
            entry for entry in _old(settings, place, question) if place.kind != "kernels" or entry.name not in needed
        ]
        folder = settings.cache_dir / place.folder
        named = (Entry(str(folder / entry.name), entry.bytes, entry.used_at) for entry in old)
        kinds[place.kind] = (*kinds.get(place.kind, ()), *named)
    return kinds


def remove_unused(settings: Settings, kind: str, paths: Collection[str], question: Question) -> Iterator[str]:
    """Remove what was planned to go, and yield the path of each that is gone; what was used since stays."""
    for place in _PLACES:
        if place.kind != kind:
            continue
        folder = settings.cache_dir / place.folder
        planned = [entry.name for entry in _old(settings, place, question) if str(folder / entry.name) in paths]
        for name in planned:
            lock = folder / (place.lock or (name if kind == "locks" else f"{name}.lock"))
            try:
                with locked(lock, wait=False) if place.lock or kind in ("locks", "snapshots") else nullcontext():
                    if remove(folder, name):
                        yield str(folder / name)
            except UsageError:  # somebody makes one, or downloads one
                continue


def _old(settings: Settings, place: Place, question: Question) -> list[Entry]:
    """Return what was not used for long, and what is more than the limit."""
    age_s = _DAY_S if place.kind == "leftovers" else max(question.older_than_s, IN_USE_S)
    listed = entries(settings.cache_dir / place.folder, place.names, folders=place.folders)
    present = [replace(entry, used_at=_last_use(settings, place, entry)) for entry in listed]
    old = {entry for entry in present if entry.used_at < question.now - age_s}
    return sorted(old.union(in_excess(present, RETENTION[place.kind], question.now)), key=lambda entry: entry.name)


def _last_use(settings: Settings, place: Place, entry: Entry) -> float:
    """Return the Unix time of the last use of an entry; of what is not what its name says, that is never over."""
    path = settings.cache_dir / place.folder / entry.name
    try:
        if place.kind == "kernels":
            memo = types.memo_of(settings.cache_dir / "btf", path / "vmlinuz")
            return max(entry.used_at, memo.lstat().st_mtime if memo.exists() else 0.0)
        if place.kind == "apt":
            return (path / "sources.d" / "private.sources").lstat().st_mtime  # written again for each use
    except OSError:
        return math.inf
    return entry.used_at


def _standard_kernels(settings: Settings) -> Iterator[str]:
    """Releases that are needed whatever runs there are: those that policies are proved on, and the host's own."""
    images = find_kernels(settings)
    yield from (settings.kernel_release, os.uname().release)
    if images:
        newest = images[0].release
        yield newest
        yield from [image.release for image in images if _major(image.release) < _major(newest)][:1]


def _major(release: str) -> tuple[int, ...]:
    return release_order(release)[0][:1]
