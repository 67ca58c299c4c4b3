"""A profile as pictures of plain text, 80 columns wide: parallelism over time, and histograms of times."""

from __future__ import annotations

import math
import textwrap
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence

from schedagent.core.host_profile import Distribution, HostProfile, ProcessRow
from schedagent.core.trials.workload import WorkloadProfile
from schedagent.observing.text import change_text, command_text, counted, critical_text, spread, summary, time_text

COLUMNS, WIDTH, HEIGHT, BAR = 80, 68, 8, 50
USED, WAITING, BLANK = "#", ".", " "
_MOST_BARS = 24

Column = tuple[float, float]
"""(tasks on CPUs, tasks on CPUs or waiting for one), on average."""


def host_pages(profile: HostProfile) -> Iterator[str]:
    """Yield the lines of a host's profile: its summary, the pictures, and each section that it has."""
    for line in _host_lines(profile):
        yield from _wrapped(line)


def _wrapped(line: str) -> list[str]:
    indent = " " * (len(line) - len(line.lstrip()) + 2)
    fits = len(line) <= COLUMNS
    return [line] if fits else textwrap.wrap(line, COLUMNS, subsequent_indent=indent, break_on_hyphens=False)


def _host_lines(profile: HostProfile) -> Iterator[str]:
    yield from summary(profile).split("\n")
    points = [(each.at_s, each.seconds, each.cpus, each.cpus + each.waiting) for each in profile.intervals]
    if points:
        yield ""
        yield f"Tasks over time: on CPUs ({USED}), waiting for one ({WAITING}); {len(points)} intervals"
        yield from chart(columns(points, profile.seconds), profile.seconds)
    for row in profile.classes:
        for what, distribution in (("wake-up to CPU", row.woken), ("lost CPU to CPU", row.preempted), ("run", row.run)):
            if distribution.samples:
                yield ""
                yield f"{row.name} tasks ({row.tasks}), {what}: {spread(distribution)}"
                yield from bars(distribution)
    yield from _section("Commands", map(command_text, profile.commands))
    yield from _section("Latency-critical threads", map(critical_text, profile.critical))
    yield from _section("Who wakes whom", (f"{row.waker} -> {row.wakee}: {row.count}" for row in profile.wakeups))
    yield from _section("Processes", map(_process_text, profile.processes))
    yield from _section("Changes", map(change_text, profile.changes))
    yield from _section("Not measured", profile.remarks)


def _process_text(row: ProcessRow) -> str:
    life = f"{row.age_s:.0f} s old, CPU {row.cpu_s:.2f} s"
    return f"{row.pid} {row.comm} (of {row.parent}): {counted(row.threads, 'thread')}, {life}"


def run_pages(profile: WorkloadProfile) -> Iterator[str]:
    """Yield the lines of the profile of a run's workload: runnable tasks over time."""
    yield f"{profile.kind.value}: {profile.wall_s:.2f} s, {profile.cpu_s:.2f} s of CPU time, {profile.cpus} CPUs"
    ends = [at for at, _runnable in profile.parallelism[1:]] + [profile.wall_s]
    points = [
        (end, max(0.0, end - at), min(runnable, profile.cpus), runnable)
        for (at, runnable), end in zip(profile.parallelism, ends, strict=True)
    ]
    if points:
        yield ""
        yield f"Runnable tasks over time: on CPUs ({USED}), waiting for one ({WAITING}); {len(points)} samples"
        yield from chart(columns(points, profile.wall_s), profile.wall_s)


def _section(title: str, lines: Iterable[str]) -> Iterator[str]:
    for number, line in enumerate(lines):
        if number == 0:
            yield ""
            yield f"{title}:"
        yield f"  {line}"


def columns(points: Sequence[tuple[float, float, float, float]], seconds: float) -> list[Column]:
    """Return a column for each part of the time: the means of what lies in it, weighted by time.

    Args:
        points: (end, seconds, on CPUs, runnable).
    """
    part = max(seconds, points[-1][0]) / WIDTH or 1.0
    sums = [[0.0, 0.0, 0.0] for _column in range(WIDTH)]
    for end, length, used, runnable in points:
        first, last = int((end - length) / part), min(WIDTH - 1, int(end / part))
        for place in range(max(0, first), last + 1):
            overlap = min(end, (place + 1) * part) - max(end - length, place * part)
            if overlap > 0:
                for number, value in enumerate((overlap, overlap * used, overlap * runnable)):
                    sums[place][number] += value
    return [(used / weight, runnable / weight) if weight else (0.0, 0.0) for weight, used, runnable in sums]


def chart(drawn: Sequence[Column], seconds: float) -> Iterator[str]:
    """Yield the rows of a chart, the topmost first, and its axes."""
    top = max(1, math.ceil(max((runnable for _used, runnable in drawn), default=1)))
    step = top / HEIGHT
    for level_number in range(HEIGHT, 0, -1):
        level = (level_number - 0.5) * step
        cells = "".join(USED if used >= level else WAITING if all_ >= level else BLANK for used, all_ in drawn)
        yield f"{level_number * step:>7.1f} |{cells}".rstrip()
    yield f"{'':7} +{'-' * WIDTH}"
    end = f"{seconds:.1f} s"
    yield f"{'':9}0{end:>{WIDTH - 1}}"


def bars(distribution: Distribution) -> Iterator[str]:
    """Yield a bar for each power of two of microseconds that holds something, and for those between."""
    powers: dict[int, int] = defaultdict(int)
    for low, _high, count in distribution.buckets:
        powers[low.bit_length()] += count
    most = max(powers.values())
    first, last = min(powers), max(powers)
    for power in range(max(first, last - _MOST_BARS + 1), last + 1):
        count = powers.get(power, 0)
        begin = time_text(1 << (power - 1)) if power else "0 us"
        yield f"{begin:>9} {USED * math.ceil(BAR * count / most):<{BAR}} {count}".rstrip()
