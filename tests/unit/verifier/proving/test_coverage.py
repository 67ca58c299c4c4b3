"""Marks: the probes that a program still has, and the counts of the kernel that are added up."""

from __future__ import annotations

import struct

from kernel_bpf.load.queue_counts import QueueCount, QueueCounts
from schedagent.core.errors import BpfError
from verifier.proving import coverage
from verifier.proving.coverage import Marks, probes_in


def slots(*instructions):
    return b"".join(struct.pack("<BBhi", *instruction) for instruction in instructions)


LOAD = (0x18, 2 << 4 | 3, 0, 77), (0, 0, 0, 0)
STORE = (0x72, 3, 5, 1)


def test_a_probe_is_an_address_and_a_store_of_one_behind_it():
    assert list(probes_in(slots(*LOAD, STORE, (0x95, 0, 0, 0)))) == [5]


def test_what_the_kernel_took_away_is_no_probe():
    assert list(probes_in(slots((0x05, 0, 0, 0), STORE))) == []
    assert list(probes_in(slots(*LOAD, (0x72, 4, 5, 1)))) == [], "another register"
    assert list(probes_in(slots(*LOAD, (0x72, 3, 5, 2)))) == [], "another value"
    assert list(probes_in(slots((0x18, 1 << 4 | 3, 0, 77), (0, 0, 0, 0), STORE))) == [], "a map, not its value"


def counted(monkeypatch, *answers):
    answers = list(answers)

    def queue_counts():
        answer = answers.pop(0)
        if isinstance(answer, BpfError):
            raise answer
        return answer

    monkeypatch.setattr(coverage, "queue_counts", queue_counts)
    marks = Marks()
    while answers:
        marks.count()
    return marks


def test_what_entered_a_queue_of_the_policy_and_of_its_copy_is_added_up(monkeypatch):
    local = (QueueCount(0, 900, 0),)
    first = QueueCounts((QueueCount(7, 3, 0), QueueCount(8, 0, 0)), local)
    second = QueueCounts((QueueCount(7, 4, 1), QueueCount(8, 0, 0)), local)
    assert counted(monkeypatch, first, None, second).entered == {7: 7, 8: 0}
    assert first.inserts == 903


def test_counts_that_the_kernel_did_not_show_once_are_not_known(monkeypatch):
    counts = QueueCounts((QueueCount(7, 3, 0),), ())
    marks = counted(monkeypatch, counts, BpfError("kernel memory cannot be read"), counts)
    assert marks.entered is None
    assert marks.why_queues == "kernel memory cannot be read"
