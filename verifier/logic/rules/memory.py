"""Rule 28 on memory: everything that a policy makes the kernel allocate, in one total.

Each element of a map counts with what the kernel keeps beside it (struct htab_elem of kernel/bpf/hashtab.c, struct
bpf_local_storage_elem); what exists for each CPU, task or cgroup counts for as many of them as are stated here.
"""

from __future__ import annotations

from collections.abc import Mapping

from schedagent.core.policies.policy import Standing
from schedagent.core.verification import Severity
from verifier.logic.rules.bounds import COUNTED_CPUS
from verifier.logic.rules.subject import Subject
from verifier.logic.walk.calls import names
from verifier.object.image import MapInfo

MEMORY_MAX = 64 << 20
"""Of a policy in all. Composed policies need at most 4 MiB, of which most is for the stated tasks."""

DATA_MAX = 1 << 20
"""Of the sections for variables: schedagentd has them mapped. The largest of ours has 34 kB, the exit record."""

MAPS_MAX = 64
COUNTED_TASKS = 8192
COUNTED_CGROUPS = 1024

_ELEMENT = 64
_STORAGE_ELEMENT = 128
_HASHED = frozenset({1, 5, 9, 10, 13})
_PER_CPU = frozenset({5, 6, 10})
_TASK_STORAGE, _CGROUP_STORAGE = 29, 32
_TAKERS = names("bpf_list_pop_front bpf_list_pop_back bpf_rbtree_remove bpf_obj_drop bpf_percpu_obj_drop")
_UNSIZED = frozenset({_TASK_STORAGE, _CGROUP_STORAGE})
_OF_MAPS = frozenset({12, 13})
_ARENA, _PAGE = 33, 4096
"""BPF_MAP_TYPE_ARENA: max_entries are pages."""
_BYTES = frozenset({27, 31})
"""Ring buffers: max_entries are bytes."""
_SIZED_BY_LOADERS = frozenset({4, 7})
"""PERF_EVENT_ARRAY, for which libbpf takes the number of CPUs, and STACK_TRACE."""


def check(subject: Subject) -> None:
    """Report maps without a size, and memory beyond the bounds."""
    image = subject.image
    sizes = {info.name: map_bytes(info) for info in image.maps.values()}
    for info in image.maps.values():
        _check_map(subject, info)
    _check_growth(subject)
    data = sum(image.sections.values()) or sum(variable.size for variable in image.variables.values())
    if data > DATA_MAX:
        _report(subject, f"its variables take {_size(data)}; accepted are {_size(DATA_MAX)}")
    if len(image.maps) > MAPS_MAX:
        _report(subject, f"it has {len(image.maps)} maps; accepted are {MAPS_MAX}")
    _check_total(subject, data, sizes)


def _check_total(subject: Subject, data: int, sizes: Mapping[str, int]) -> None:
    """Of what a person brings an arena counts by itself: its pages come as they are asked for, and a run shows how
    many."""
    foreign = subject.standing is Standing.FOREIGN
    arenas = {info.name for info in subject.image.maps.values() if foreign and info.type == _ARENA}
    others = {name: size for name, size in sizes.items() if name not in arenas}
    total, grown = data + sum(others.values()), data + sum(sizes.values())
    if total > MEMORY_MAX:
        largest = max(others, key=lambda name: others[name], default="")
        besides = " besides its arena" if arenas else ""
        text = f"it may take {_size(total)} of memory{besides}; accepted are {_size(MEMORY_MAX)}"
        _report(subject, f"{text} (map {largest}: {_size(others[largest])})" if others else text)
    elif grown > MEMORY_MAX:
        text = f"its arena may grow to {_size(grown)} of memory; accepted are {_size(MEMORY_MAX)}"
        subject.report(28, Severity.WARNING, "", None, text, cleared_by="memory growth")


def _check_growth(subject: Subject) -> None:
    """Objects that are made and put into a list or a tree must be taken out of one somewhere."""
    for event in subject.events("bpf_obj_new", "bpf_percpu_obj_new"):
        if not any(True for _taken in subject.events(*_TAKERS)):
            subject.error(28, event, f"{event.raw}() makes objects, and nothing takes them from a list or drops them")


def map_bytes(info: MapInfo) -> int:
    """Return what a map may take, as the module counts."""
    value = (info.value_size + 7) // 8 * 8
    if info.type == _ARENA:
        return info.max_entries * _PAGE
    if info.type in _BYTES:
        return info.max_entries
    if info.type in _UNSIZED:
        return (value + _STORAGE_ELEMENT) * (COUNTED_TASKS if info.type == _TASK_STORAGE else COUNTED_CGROUPS)
    if info.type in _OF_MAPS and info.inner is not None:
        value += map_bytes(info.inner)
    element = value * (COUNTED_CPUS if info.type in _PER_CPU else 1)
    if info.type in _HASHED:
        element += (info.key_size + 7) // 8 * 8 + _ELEMENT
    return info.max_entries * element


def _check_map(subject: Subject, info: MapInfo) -> None:
    if info.max_entries == 0 and info.type not in _UNSIZED | _SIZED_BY_LOADERS:
        subject.unusual(28, "", info.line, f"map {info.name} declares no max_entries")
    if info.inner is not None:
        _check_map(subject, info.inner)


def _report(subject: Subject, text: str) -> None:
    subject.report(28, Severity.ERROR, "", None, text)


def _size(count: int) -> str:
    return f"{count >> 20} MiB" if count >= 10 << 20 else f"{count >> 10} KiB"
