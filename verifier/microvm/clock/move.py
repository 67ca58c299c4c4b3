"""Setting a guest's clocks ahead.

The kernel keeps the wall clock's seconds in struct timekeeper, and beside them the base that ktime_get() adds to the
counter; each update derives the bases from the seconds (tk_update_ktime_data() in kernel/time/timekeeping.c). Who adds
to both moves CLOCK_MONOTONIC, CLOCK_BOOTTIME and the wall clock alike, as if the machine had stood still for so long.
The ticks are counted up with them: tick_do_update_jiffies64() in kernel/time/tick-sched.c would do so a moment later,
and whoever woke in that moment would look as if it waited since long ago. Whoever waits for a CPU at the leap does look
like that: until it ran, sched_ext's watchdog allows for as much time as went by.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from verifier.microvm.clock.debugger import Debugger
from verifier.microvm.clock.place import ClockPlace

MOST_AHEAD_S = 400 * 86400
WATCHDOG_REST_S = 120
_LENGTH_BYTES, _PART_BYTES = 1024, 512
"""Of what is searched: the timekeeper and its shadow take some 600 bytes."""

_SHORTEST_TICK_NS, _LONGEST_TICK_NS = 900_000, 11_000_000
_NS = 1_000_000_000
_APART_S = 2
"""The guest read its wall clock a moment before."""


@dataclass(frozen=True)
class Timekeeper:
    """Addresses in the timekeeper and its shadow.

    Args:
        seconds: of the wall clock.
        bases: of ktime_get(), in ns; the next word is the same for the wall clock.
    """

    seconds: tuple[int, ...]
    bases: tuple[int, ...]


def move_clocks(debugger: Debugger, place: ClockPlace, wall_s: int, ahead_s: int) -> bool:
    """Set all clocks of a guest that stands still ahead; return whether they are where they should be.

    Args:
        wall_s: what the guest's wall clock shows, in whole seconds since 1970.
        ahead_s: by so many seconds.

    Raises:
        VmLost: the debugger does not answer, or refuses.
    """
    if not (place.known and 0 < ahead_s <= MOST_AHEAD_S):
        return False
    keeper, tick_ns = find_timekeeper(debugger, place, wall_s), tick_length_ns(debugger, place)
    if not (keeper.seconds and keeper.bases and tick_ns):
        return False
    for address in keeper.seconds:
        debugger.add(address, ahead_s)
    for address in keeper.bases:
        debugger.add(address, ahead_s * _NS)
        debugger.add(address + 8, ahead_s * _NS)
    debugger.add(place.jiffies, ahead_s * _NS // tick_ns)
    for address in (place.last_tick, place.next_tick, place.sched_clock):
        if address:
            debugger.add(address, ahead_s * _NS)
    if place.watchdog:  # else the next tick finds that the watchdog did not look for too long
        debugger.add(place.watchdog, ahead_s * _NS // tick_ns)
    if limit := _limit(debugger, place):
        debugger.add(limit, ahead_s * _NS // tick_ns)
    return True


def _limit(debugger: Debugger, place: ClockPlace) -> int:
    """The address of the watchdog's time limit; 0 if it has none, or no policy is in charge."""
    if not place.root:
        return place.limit
    (policy,) = struct.unpack("<Q", debugger.read(place.root, 8))
    return policy + place.limit if policy else 0


def rest_watchdog(debugger: Debugger, place: ClockPlace, moved_s: int) -> bool:
    """Take the watchdog's time limit back, and have nobody ask for WATCHDOG_REST_S when it looked last.

    It may not look for hours: a timer that is set while the kernel catches up with a leap of its clocks is rounded as
    if it were as far away as the leap is long, by up to an eighth of that (calc_wheel_index() in kernel/time/timer.c).
    The oracles see starving tasks themselves.

    Args:
        moved_s: how far the clocks were set ahead, in seconds: the limit allows for as much.

    Returns:
        Whether that could be done.

    Raises:
        VmLost: the debugger does not answer, or refuses.
    """
    tick_ns = tick_length_ns(debugger, place) if place.watchdog else 0
    if tick_ns:
        debugger.add(place.watchdog, WATCHDOG_REST_S * _NS // tick_ns)
    if tick_ns and (limit := _limit(debugger, place)):
        debugger.add(limit, -(moved_s * _NS // tick_ns))
    return bool(tick_ns)


def find_timekeeper(debugger: Debugger, place: ClockPlace, wall_s: int) -> Timekeeper:
    """Find the wall clock's seconds, and the bases beside it, by what they show."""
    parts = range(0, _LENGTH_BYTES, _PART_BYTES)
    memory = b"".join(debugger.read(place.timekeeper + part, _PART_BYTES) for part in parts)
    shown = {place.timekeeper + 8 * number: word for number, (word,) in enumerate(struct.iter_unpack("<Q", memory))}
    return Timekeeper(
        seconds=tuple(at for at, word in shown.items() if abs(word - wall_s) <= _APART_S),
        bases=tuple(at - 8 for at, word in shown.items() if abs(word - wall_s * _NS) <= _APART_S * _NS),
    )


def tick_length_ns(debugger: Debugger, place: ClockPlace) -> int:
    """How far apart ticks are; 0 if that is not between 1 and 10 ms, as any kernel has it."""
    last, following = (struct.unpack("<Q", debugger.read(at, 8))[0] for at in (place.last_tick, place.next_tick))
    length_ns: int = following - last
    return length_ns if _SHORTEST_TICK_NS <= length_ns <= _LONGEST_TICK_NS else 0
