"""How much kernel memory the maps and data sections of an object may take, known before any of it is given out.

The kernel charges a policy's maps to the control group of whoever loads it, so what a policy takes is taken from its
supervisor. What is counted here errs on the high side; a kind of map that is not known here is refused.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum

from schedagent.core.errors import PolicyError

MOST_BYTES = 64 << 20
"""Of all maps and sections of a policy together. The library's largest takes 7 MiB; schedagentd's unit allows 256 MiB,
of which it needs 45 itself."""
MOST_MAPS = 128
"""Data sections are maps, too; the library's largest has 12."""
TASKS, CGROUPS = 32768, 4096
"""For how many tasks and cgroups storage is counted: a full machine (the default pid_max), and some."""

_ELEMENT = 64
"""Of an element of a hash map or a local storage besides key and value: struct htab_elem (kernel/bpf/hashtab.c), struct
bpf_local_storage_elem (include/linux/bpf_local_storage.h)."""
_POINTER, _BUCKET, _PAGE = 8, 16, 4096


class MapKind(IntEnum):
    """enum bpf_map_type of include/uapi/linux/bpf.h, as far as it can be counted."""

    HASH = 1
    ARRAY = 2
    PROG_ARRAY = 3
    PERF_EVENT_ARRAY = 4
    PERCPU_HASH = 5
    PERCPU_ARRAY = 6
    LRU_HASH = 9
    LRU_PERCPU_HASH = 10
    ARRAY_OF_MAPS = 12
    HASH_OF_MAPS = 13
    QUEUE = 22
    STACK = 23
    STRUCT_OPS = 26
    RINGBUF = 27
    TASK_STORAGE = 29
    USER_RINGBUF = 31
    CGRP_STORAGE = 32
    ARENA = 33


@dataclass(frozen=True)
class MapSize:
    """What decides how much memory a map takes.

    Args:
        kind: number of enum bpf_map_type.
        key_bytes, value_bytes, entries: as declared.
        inner: of each map in a map of maps.
        section: it is a data section, of which libbpf keeps the initial content, too, in the process that loads it.
    """

    name: str
    kind: int
    key_bytes: int
    value_bytes: int
    entries: int
    inner: MapSize | None = None
    section: bool = False


def map_bytes(size: MapSize, cpus: int) -> int:
    """Return at most how many bytes a map will take.

    Args:
        cpus: possible CPUs of this machine, each of which has its own copy of a per-CPU value.

    Raises:
        PolicyError: it is of a kind that is not known here.
    """
    key, value, entries = _rounded(size.key_bytes), _rounded(size.value_bytes), size.entries
    hashed = entries * (_ELEMENT + key) + 2 * entries * _BUCKET  # as many buckets as the next power of two
    match size.kind:
        case MapKind.HASH | MapKind.LRU_HASH:
            total = hashed + entries * value
        case MapKind.PERCPU_HASH | MapKind.LRU_PERCPU_HASH:
            total = hashed + entries * (_POINTER + value * cpus)
        case MapKind.ARRAY | MapKind.QUEUE | MapKind.STACK:
            total = entries * value * (2 if size.section else 1)
        case MapKind.PERCPU_ARRAY:
            total = entries * (_POINTER + value * cpus)
        case MapKind.PROG_ARRAY | MapKind.PERF_EVENT_ARRAY:
            total = entries * _POINTER
        case MapKind.RINGBUF | MapKind.USER_RINGBUF:
            total = entries
        case MapKind.ARENA:
            total = entries * _PAGE
        case MapKind.TASK_STORAGE:
            total = TASKS * (_ELEMENT + value)
        case MapKind.CGRP_STORAGE:
            total = CGROUPS * (_ELEMENT + value)
        case MapKind.STRUCT_OPS:
            total = value
        case MapKind.ARRAY_OF_MAPS | MapKind.HASH_OF_MAPS:
            total = hashed + entries * (_POINTER + (map_bytes(size.inner, cpus) if size.inner else 0))
        case _:
            raise PolicyError(
                f"map {size.name} is of type {size.kind}, whose memory is not known", "use another type of map"
            )
    return total + _PAGE


def check_memory(name: str, maps: Sequence[MapSize], cpus: int) -> int:
    """Return at most how many bytes an object's maps and data sections will take together.

    Args:
        name: of the object.
        cpus: possible CPUs of this machine.

    Raises:
        PolicyError: they are too many or too large.
    """
    if len(maps) > MOST_MAPS:
        raise PolicyError(f"{name} has {len(maps)} maps and data sections; at most {MOST_MAPS} are accepted")
    sizes = {size.name: map_bytes(size, cpus) for size in maps}
    total = sum(sizes.values())
    if total > MOST_BYTES:
        largest = max(sizes, key=lambda of: sizes[of])
        raise PolicyError(
            f"the maps and data sections of {name} may take {_mib(total)}, {largest} alone {_mib(sizes[largest])}; "
            f"at most {_mib(MOST_BYTES)} are accepted",
            "make them smaller",
        )
    return total


def _rounded(size_bytes: int) -> int:
    return size_bytes + 7 & ~7


def _mib(size_bytes: int) -> str:
    return f"{size_bytes / (1 << 20):.1f} MiB"
