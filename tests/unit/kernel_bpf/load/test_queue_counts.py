"""The counts of DSQs out of a core file made by hand; tests/vm/test_proving_ground.py reads a real kernel's."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from kernel_bpf.load import queue_counts as module
from kernel_bpf.load.queue_counts import KernelMemory, Layout, QueueCount, queue_counts
from schedagent.core.errors import BpfError

BASE = 0xFFFF888000000000
PAGE = 4096
ROOT, TABLE, NEXT_TABLE, QUEUES, PER_CPU = 0x000, 0x100, 0x200, 0x400, 0x800
OFFSETS = {
    "scx_sched.dsq_hash": 16, "rhashtable.tbl": 8,
    "bucket_table.size": 0, "bucket_table.nest": 4, "bucket_table.future_tbl": 8, "bucket_table.buckets": 16,
    "scx_dispatch_q.nr": 0, "scx_dispatch_q.seq": 4, "scx_dispatch_q.id": 8, "scx_dispatch_q.hash_node": 16,
    "rq.scx": 8, "scx_rq.local_dsq": 8,
}  # fmt: skip
ROOT_POINTER, OFFSET_TABLE = 0xF00, 0xF10


def core_file(folder: Path, memory: bytes) -> Path:
    """A core file with one segment."""
    header = struct.pack("<16sHHIQQQIHHHHHH", b"\x7fELF\x02\x01\x01", 4, 62, 1, 0, 64, 0, 0, 64, 56, 2, 0, 0, 0)
    note = struct.pack("<IIQQQQQQ", 4, 0, 0, 0, 0, 0, 0, 0)
    segment = struct.pack("<IIQQQQQQ", 1, 6, PAGE, BASE, 0, len(memory), len(memory), PAGE)
    path = folder / "kcore"
    path.write_bytes((header + note + segment).ljust(PAGE, b"\0") + memory)
    return path


class Memory:
    """A page of a kernel's memory."""

    def __init__(self):
        self.content = bytearray(PAGE)
        self.queues = 0

    def put(self, place: int, layout: str, *numbers: int) -> None:
        struct.pack_into(layout, self.content, place, *numbers)

    def queue(self, number: int, inserts: int, waiting: int, following: int = 1) -> int:
        """Add a DSQ; return the address of its node in a hash chain."""
        place = QUEUES + 32 * self.queues
        self.queues += 1
        self.put(place, "<IIQQ", waiting, inserts, number, following)
        return BASE + place + OFFSETS["scx_dispatch_q.hash_node"]


@pytest.fixture
def memory(tmp_path, monkeypatch):
    """Two CPUs' local queues, and a policy whose table has two buckets, none of them used."""
    page = Memory()
    page.put(ROOT_POINTER, "<Q", BASE + ROOT)
    page.put(ROOT + 24, "<Q", BASE + TABLE)
    page.put(TABLE, "<IIQQQ", 2, 0, 0, 0, 1)
    run_queues = (1 << 64) - 0x1000  # as since 6.15: added to an offset it wraps
    for cpu in (0, 1):
        place = PER_CPU + 64 * cpu
        page.put(OFFSET_TABLE + 8 * cpu, "<Q", (BASE + place - run_queues) & (1 << 64) - 1)
        page.put(place + 16, "<IIQ", cpu, 100 + cpu, 1 << 63 | 2)
    symbols = {"scx_root": BASE + ROOT_POINTER, "__per_cpu_offset": BASE + OFFSET_TABLE, "runqueues": run_queues}
    monkeypatch.setattr(module, "kernel_layout", lambda: Layout(OFFSETS, symbols))
    monkeypatch.setattr(module.os, "sched_getaffinity", lambda _pid: {0, 1})
    monkeypatch.setattr(
        module.KernelMemory, "open", classmethod(lambda cls: OPEN(core_file(tmp_path, bytes(page.content))))
    )
    return page


OPEN = KernelMemory.open


def test_every_queue_of_a_chain_and_of_the_table_that_follows_is_counted(memory):
    last = memory.queue(9, 12, 1)
    first = memory.queue(1 << 40, 5, 0, following=last)
    memory.put(TABLE, "<IIQQQ", 2, 0, BASE + NEXT_TABLE, first | 1, 0)  # bit 0 of a bucket is its lock
    memory.put(NEXT_TABLE, "<IIQQ", 1, 0, 0, memory.queue(3, 0, 0))
    counts = queue_counts()
    assert counts.created == (QueueCount(3, 0, 0), QueueCount(9, 12, 1), QueueCount(1 << 40, 5, 0))
    assert counts.local == (QueueCount(0, 100, 0), QueueCount(1, 101, 1))
    assert counts.inserts == 218


def test_without_a_policy_there_is_nothing_to_count(memory):
    memory.put(ROOT_POINTER, "<Q", 0)
    assert queue_counts() is None


@pytest.mark.parametrize(("size", "nested"), [(1 << 20, 0), (2, 1)], ids=["large", "nested"])
def test_a_table_that_cannot_be_followed_is_said(memory, size, nested):
    memory.put(TABLE, "<II", size, nested)
    with pytest.raises(BpfError, match="buckets cannot be followed"):
        queue_counts()


def test_a_chain_that_leads_nowhere_is_said(memory):
    memory.put(TABLE, "<IIQQQ", 2, 0, 0, 0x1000, 0)
    with pytest.raises(BpfError, match="cannot be read"):
        queue_counts()


def test_a_file_that_is_no_core_is_said(tmp_path):
    (tmp_path / "kcore").write_bytes(b"short")
    for path in (tmp_path / "kcore", tmp_path / "none"):
        with pytest.raises(BpfError, match="cannot be read"):
            KernelMemory.open(path)
