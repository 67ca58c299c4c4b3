"""How many tasks entered each DSQ since it was created, as the kernel itself counts: read from its memory.

The kernel numbers the tasks of a DSQ in the order they are queued (`seq` of struct scx_dispatch_q, dispatch_enqueue()
in kernel/sched/ext.c) and shows that number nowhere. /proc/kcore is the kernel's memory as a core file; where things
lie is in its BTF and in /proc/kallsyms. No program of the policy's has a part in it, and nothing is slowed down.
"""

from __future__ import annotations

import functools
import os
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from kernel_bpf.load.btf import KERNEL_BTF, Btf
from schedagent.core.errors import BpfError

KCORE = Path("/proc/kcore")
SYMBOLS = Path("/proc/kallsyms")

QUEUE_LIMIT = 1 << 14
"""Most DSQs, and most steps along one chain of the table, that are followed."""

_HEADER = struct.Struct("<16sHHIQQQIHHHHHH")
_SEGMENT = struct.Struct("<IIQQQQQQ")
_LOAD_SEGMENT = 1
_WANTED = {
    "scx_sched": ("dsq_hash",),
    "rhashtable": ("tbl",),
    "bucket_table": ("size", "nest", "future_tbl", "buckets"),
    "scx_dispatch_q": ("nr", "seq", "id", "hash_node"),
    "rq": ("scx",),
    "scx_rq": ("local_dsq",),
}
WATCHDOG_LIMIT = "scx_sched.watchdog_timeout"
"""In the layout's offsets where each policy has a time limit of its own, as in 7.2; 6.18 has one variable for it."""

_ROOT, _PER_CPU, _RUN_QUEUES = "scx_root", "__per_cpu_offset", "runqueues"


@dataclass(frozen=True)
class QueueCount:
    """One DSQ.

    Args:
        id: as the policy created it; for the local DSQ of a CPU, that CPU's number.
        inserts: tasks that entered it, modulo 2^32.
        waiting: tasks in it now.
    """

    id: int
    inserts: int
    waiting: int


@dataclass(frozen=True)
class QueueCounts:
    """All DSQs of the policy in charge.

    Args:
        created: those it created.
        local: those of the CPUs; the kernel creates them, and they outlive policies.
    """

    created: tuple[QueueCount, ...]
    local: tuple[QueueCount, ...]

    @property
    def inserts(self) -> int:
        """Of all queues together."""
        return sum(queue.inserts for queue in (*self.created, *self.local))


@dataclass(frozen=True)
class Layout:
    """Where things are.

    Args:
        offsets: of members, "struct.member" -> bytes.
        addresses: of kernel symbols.
    """

    offsets: Mapping[str, int]
    addresses: Mapping[str, int]


@functools.cache
def kernel_layout() -> Layout:
    """Read where this kernel keeps its DSQs; takes an emulated machine seconds, so it is done before its snapshot.

    Raises:
        BpfError: this kernel keeps them otherwise, or does not show where.
    """
    offsets: dict[str, int] = {}
    with Btf.parse(KERNEL_BTF) as btf:
        for name, members in _WANTED.items():
            places = btf.offsets(name)
            missing = [member for member in members if member not in places]
            if missing:
                raise BpfError(f"struct {name} of this kernel has no member {', '.join(missing)}")
            offsets |= {f"{name}.{member}": places[member] for member in members}
        sched, _, limit = WATCHDOG_LIMIT.partition(".")
        if (place := btf.offsets(sched).get(limit)) is not None:
            offsets[WATCHDOG_LIMIT] = place
    wanted, addresses = {_ROOT, _PER_CPU, _RUN_QUEUES}, {}
    with SYMBOLS.open() as lines:
        for line in lines:
            address, _kind, symbol = line.split(maxsplit=2)
            if symbol.rstrip("\n") in wanted:
                addresses[symbol.rstrip("\n")] = int(address, 16)
    if len(addresses) < len(wanted) or not all(addresses[name] for name in (_ROOT, _PER_CPU)):
        raise BpfError(f"{SYMBOLS} does not show where {', '.join(sorted(wanted - set(addresses)))} lie")
    return Layout(offsets, addresses)


class KernelMemory:
    """The kernel's memory at its own addresses."""

    def __init__(self, file: int, segments: tuple[tuple[int, int, int], ...]) -> None:
        self._file = file
        self._segments = segments

    @classmethod
    def open(cls, path: Path = KCORE) -> Self:
        """Open the core file; raise BpfError if it cannot be read."""
        try:
            file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            header = _HEADER.unpack(os.pread(file, _HEADER.size, 0))
            table = os.pread(file, header[10] * _SEGMENT.size, header[5])
            segments = [_SEGMENT.unpack_from(table, at) for at in range(0, len(table), _SEGMENT.size)]
        except (OSError, struct.error) as error:
            raise BpfError(f"{path} cannot be read: {error}") from None
        places = ((each[3], each[5], each[2]) for each in segments if each[0] == _LOAD_SEGMENT)
        return cls(file, tuple(places))

    def close(self) -> None:
        """Close the core file."""
        os.close(self._file)

    def read(self, address: int, size: int) -> bytes:
        """Return `size` bytes; raise BpfError if there is no such memory."""
        for start, length, offset in self._segments:
            if start <= address and address + size <= start + length:
                content = os.pread(self._file, size, offset + address - start)
                if len(content) == size:
                    return content
        raise BpfError(f"kernel memory at {address:#x} cannot be read")

    def number(self, address: int, size: int = 8) -> int:
        """Return an unsigned number."""
        return int.from_bytes(self.read(address, size), "little")


def queue_counts() -> QueueCounts | None:
    """Count what entered each DSQ of the policy in charge; None if none is.

    Raises:
        BpfError: the kernel does not show it.
    """
    layout, memory = kernel_layout(), KernelMemory.open()
    try:
        root = memory.number(layout.addresses[_ROOT])
        if not root:
            return None
        table = root + layout.offsets["scx_sched.dsq_hash"] + layout.offsets["rhashtable.tbl"]
        created = {queue: _count(memory, layout, queue) for queue in _hashed(memory, layout, memory.number(table))}
        local = tuple(_local(memory, layout, cpu) for cpu in sorted(os.sched_getaffinity(0)))
        return QueueCounts(tuple(sorted(created.values(), key=lambda queue: queue.id)), local)
    finally:
        memory.close()


def _hashed(memory: KernelMemory, layout: Layout, table: int) -> Iterator[int]:
    """Yield the address of each DSQ in a hash table, and in the one that replaces it while it grows.

    A bucket holds a chain whose end, like an empty bucket, has bit 0 set or is null; bit 0 of the bucket itself is its
    lock (include/linux/rhashtable.h).
    """
    offsets = layout.offsets
    while table:
        size = memory.number(table + offsets["bucket_table.size"], 4)
        if memory.number(table + offsets["bucket_table.nest"], 4) or size > QUEUE_LIMIT:
            raise BpfError(f"a table of {size} DSQ buckets cannot be followed")
        buckets = memory.read(table + offsets["bucket_table.buckets"], 8 * size)
        for (bucket,) in struct.iter_unpack("<Q", buckets):
            node = bucket & ~1
            for _step in range(QUEUE_LIMIT):
                if not node or node & 1:
                    break
                yield node - offsets["scx_dispatch_q.hash_node"]
                node = memory.number(node)
        table = memory.number(table + offsets["bucket_table.future_tbl"])


def _count(memory: KernelMemory, layout: Layout, queue: int) -> QueueCount:
    number, inserts, waiting = (
        memory.number(queue + layout.offsets[f"scx_dispatch_q.{name}"], size)
        for name, size in (("id", 8), ("seq", 4), ("nr", 4))
    )
    return QueueCount(number, inserts, waiting)


def _local(memory: KernelMemory, layout: Layout, cpu: int) -> QueueCount:
    run_queue = memory.number(layout.addresses[_PER_CPU] + 8 * cpu) + layout.addresses[_RUN_QUEUES]
    run_queue &= (1 << 64) - 1  # since 6.15 both are addresses, and their sum wraps
    queue = _count(memory, layout, run_queue + layout.offsets["rq.scx"] + layout.offsets["scx_rq.local_dsq"])
    return QueueCount(cpu, queue.inserts, queue.waiting)
