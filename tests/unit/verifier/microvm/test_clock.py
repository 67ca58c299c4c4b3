"""Moving a guest's clocks: the debugger's protocol, where the clocks are, and what is written."""

from __future__ import annotations

import socket
import struct
import threading
from dataclasses import replace

import pytest

from schedagent.core.errors import VmLost
from verifier.microvm.clock import place
from verifier.microvm.clock.debugger import Debugger
from verifier.microvm.clock.move import MOST_AHEAD_S, WATCHDOG_REST_S, move_clocks, rest_watchdog
from verifier.microvm.clock.place import ClockPlace, find_clocks

BASE = 0xFFFFFFFF94201000
WALL_S = 1_796_032_479
NS, MS = 1_000_000_000, 1_000_000
OTHERS = BASE + 4096
OTHER_CLOCKS = struct.pack("<5Q", 1000, 80 * MS, 84 * MS, 5, 7)
"""Jiffies, the last and the next tick, sched_clock's offset, the watchdog's look; 250 ticks a second."""

PLACE = ClockPlace(BASE, *(OTHERS + 8 * number for number in range(5)))


class Memory:
    """A machine that stands still, at the other end of a debugger's socket; only what was put there can be read."""

    def __init__(self, content):
        self.content = dict(content)
        self.ours, theirs = socket.socketpair()
        self.thread = threading.Thread(target=self.serve, args=(theirs,), daemon=True)
        self.thread.start()

    def serve(self, sock):
        """Answer as QEMU does: an acknowledgement, now and then word that the machine stopped, the answer."""
        pending = b""
        while chunk := sock.recv(4096):
            pending += chunk
            while b"#" in pending and len(pending) >= pending.index(b"#") + 3:
                end = pending.index(b"#")
                body = pending[pending.index(b"$") + 1 : end].decode()
                pending = pending[end + 3 :]
                sock.sendall(b"+")
                sock.sendall(self.packet("T05thread:01;"))
                sock.sendall(self.packet(self.answer(body)))

    @staticmethod
    def packet(body):
        return f"${body}#{sum(body.encode()) & 0xFF:02x}".encode()

    def answer(self, body):
        where, _, data = body[1:].partition(":")
        address, size = (int(word, 16) for word in where.split(","))
        known = next((start for start, held in self.content.items() if start <= address < start + len(held)), None)
        if known is None:
            return "E14"
        held, offset = self.content[known], address - known
        if body[0] == "m":
            return held[offset : offset + size].hex()
        self.content[known] = held[:offset] + bytes.fromhex(data) + held[offset + size :]
        return "OK"


def timekeeper():
    """A timekeeper and its shadow: other numbers, both bases, the wall clock's seconds, those since boot."""
    keeper = struct.pack(
        "<8Q", 0xFFFFFFFF93437F40, (1 << 64) - 1, 10**12, 6462377, 23 * NS, WALL_S * NS + 5, WALL_S, 23
    )
    return b"".join((bytes(8), keeper, bytes(256), keeper)).ljust(1024, b"\0")


def moved(memory, wall_s=WALL_S + 1, ahead_s=3600):
    return move_clocks(Debugger(memory.ours), PLACE, wall_s, ahead_s)


def test_every_clock_is_moved_and_nothing_else():
    memory = Memory({BASE: timekeeper(), OTHERS: OTHER_CLOCKS})
    assert moved(memory)
    before, after = (struct.unpack("<128Q", content) for content in (timekeeper(), memory.content[BASE]))
    changes = {number: now - then for number, (then, now) in enumerate(zip(before, after, strict=True)) if now != then}
    first, shadow = 1, 1 + 8 + 32
    assert changes == {
        start + place: change
        for start in (first, shadow)
        for place, change in ((4, 3600 * NS), (5, 3600 * NS), (6, 3600))
    }
    ticks, hour_ns = 3600 * 250, 3600 * NS
    others = (1000 + ticks, 80 * MS + hour_ns, 84 * MS + hour_ns, 5 + hour_ns, 7 + ticks)
    assert struct.unpack("<5Q", memory.content[OTHERS]) == others


def test_the_watchdog_has_its_rest_and_nothing_else_changes():
    memory = Memory({BASE: timekeeper(), OTHERS: OTHER_CLOCKS})
    assert rest_watchdog(Debugger(memory.ours), PLACE, 3600)
    assert memory.content[BASE] == timekeeper()
    rested = struct.unpack("<5Q", memory.content[OTHERS])
    assert rested == (1000, 80 * MS, 84 * MS, 5, 7 + WATCHDOG_REST_S * 250)
    assert not rest_watchdog(Debugger(memory.ours), replace(PLACE, watchdog=0), 3600)


LIMIT = OTHERS + 64
VARIABLE = replace(PLACE, limit=LIMIT)
MEMBER = replace(PLACE, root=LIMIT + 64, limit=16)


@pytest.mark.parametrize("clocks", [VARIABLE, MEMBER], ids=["a variable", "a member of the policy in charge"])
def test_who_waits_at_the_leap_is_not_late_and_has_the_usual_limit_once_it_ran(clocks):
    limit = struct.pack("<Q", 750)
    pointer = struct.pack("<Q", LIMIT - 16)
    memory = Memory({BASE: timekeeper(), OTHERS: OTHER_CLOCKS, LIMIT: limit, LIMIT + 64: pointer})
    debugger = Debugger(memory.ours)
    assert move_clocks(debugger, clocks, WALL_S + 1, 3600)
    assert struct.unpack("<Q", memory.content[LIMIT]) == (750 + 3600 * 250,)
    assert rest_watchdog(debugger, clocks, 3600)
    assert memory.content[LIMIT] == limit
    assert memory.content[LIMIT + 64] == pointer


def test_without_a_policy_in_charge_there_is_no_limit_to_move():
    memory = Memory({BASE: timekeeper(), OTHERS: OTHER_CLOCKS, LIMIT + 64: bytes(8)})
    assert move_clocks(Debugger(memory.ours), MEMBER, WALL_S + 1, 3600)
    assert memory.content[LIMIT + 64] == bytes(8)


@pytest.mark.parametrize("ahead_s", [0, -5, MOST_AHEAD_S + 1])
def test_clocks_go_ahead_and_not_too_far(ahead_s):
    assert not moved(Memory({}), ahead_s=ahead_s)


@pytest.mark.parametrize("apart_ns", [0, 20 * MS, -4 * MS])
def test_where_ticks_make_no_sense_nothing_is_written(apart_ns):
    content = {BASE: timekeeper(), OTHERS: struct.pack("<5Q", 1000, 80 * MS, 80 * MS + apart_ns, 5, 7)}
    memory = Memory(content)
    assert not moved(memory)
    assert memory.content == content


def test_where_no_clock_shows_the_time_nothing_is_written():
    content = {BASE: timekeeper(), OTHERS: OTHER_CLOCKS}
    memory = Memory(content)
    assert not moved(memory, wall_s=WALL_S + 60)
    assert memory.content == content


def test_memory_that_cannot_be_read_is_an_error():
    with pytest.raises(VmLost, match="refused"):
        moved(Memory({}))


TICKS = "10 D jiffies\n10 D jiffies_64\n20 b last_jiffies_update\n30 B tick_next_period\n"


@pytest.mark.parametrize(
    ("symbols", "known"),
    [
        (
            f"a0 b timekeeper_data\n{TICKS}c0 D __sched_clock_offset\nd0 b scx_watchdog_timestamp\n",
            ClockPlace(0xA0, 0x10, 0x20, 0x30, 0xC0, 0xD0),
        ),
        (
            f"a0 b tk_core\n{TICKS}e0 b scx_watchdog_timeout\nf0 b scx_root\n",
            ClockPlace(0xA0, 0x10, 0x20, 0x30, limit=0xE0),
        ),
        (f"a0 b tk_core\n{TICKS}", ClockPlace(0xA0, 0x10, 0x20, 0x30)),
        ("a0 b tk_core\nb0 d clocksource_tsc\n", ClockPlace(0xA0)),
        (f"a0 t tk_core_but_another\n{TICKS}", ClockPlace(0, 0x10, 0x20, 0x30)),
    ],
)
def test_the_clocks_are_looked_up_among_the_kernels_symbols(symbols, known, tmp_path, monkeypatch):
    (tmp_path / "kallsyms").write_text(symbols)
    monkeypatch.setattr(place, "SYMBOLS", tmp_path / "kallsyms")
    assert find_clocks() == known
    assert find_clocks().known == bool(known.timekeeper and known.next_tick)


def test_the_limit_of_the_policy_in_charge_is_behind_its_pointer(tmp_path, monkeypatch):
    (tmp_path / "kallsyms").write_text(f"a0 b tk_core\n{TICKS}f0 b scx_root\n")
    monkeypatch.setattr(place, "SYMBOLS", tmp_path / "kallsyms")
    assert find_clocks(0xD8) == ClockPlace(0xA0, 0x10, 0x20, 0x30, limit=0xD8, root=0xF0)
