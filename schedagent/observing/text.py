"""A profile in a few lines, each number with its unit and its sample size: for people, and for a prompt."""

from __future__ import annotations

from collections.abc import Iterator

from schedagent.core.host_profile import ChangePoint, CommandRow, CriticalThread, Distribution, HostProfile

COMMANDS, THREADS, CHANGES, CLASSES, CGROUPS = 3, 2, 2, 2, 2
_UNITS = {"cpus": "CPUs", "waiting": "tasks waiting", "delay_us": "us mean wait", "pressure": "pressure"}


def summary(profile: HostProfile) -> str:
    """Return at most 20 lines, which take less than 400 tokens."""
    return "\n".join(_lines(profile))


def _lines(profile: HostProfile) -> Iterator[str]:
    policy = f"policy {profile.policy}" if profile.policy else "default scheduler"
    yield f"{profile.scope}: {profile.seconds:.1f} s, {profile.cpus} CPUs, {profile.kernel}, {policy}"
    waited = f"mean wait {time_text(profile.delay_us)} ({profile.runs} runs)" if profile.runs else "nothing ran"
    yield f"  used {profile.cpus_used:.2f} CPUs; {waited}; {profile.switches / profile.seconds:.0f} switches/s"
    pressure = ", ".join(f"{name} {100 * share:.0f} %" for name, share in profile.pressure.items())
    yield f"  pressure {pressure or 'unknown'}; load {profile.load:.1f} (1 min)"
    if profile.events:
        yield f"  sched_ext events: {sum(profile.events.values())}"
    if profile.cgroups:
        yield "  cgroups: " + ", ".join(f"{row.path} {row.cpus:.2f} CPUs" for row in profile.cgroups[:CGROUPS])
    yield from (f"  {command_text(row)}" for row in profile.commands[:COMMANDS])
    if profile.lifetimes:
        ended = profile.lifetimes
        yield f"  {ended.ended} processes ended, of {ended.p50_s:.3g} s (p50), {ended.p95_s:.3g} s (p95)"
    for row in profile.classes[:CLASSES]:
        yield f"  {row.name} tasks, wake-up to CPU: {spread(row.woken)}"
    yield from (f"  latency-critical: {critical_text(thread)}" for thread in profile.critical[:THREADS])
    yield from (f"  {change_text(change)}" for change in profile.changes[:CHANGES])
    if profile.lost:
        yield "  no room for: " + ", ".join(f"{count} {name}" for name, count in profile.lost.items())
    yield f"  watching took {100 * profile.cost_cpus:.2f} % of a CPU"


def command_text(row: CommandRow) -> str:
    """Return what a command used."""
    burst = f", burst {time_text(1e6 * row.run_s / row.runs)} ({row.runs} runs)" if row.runs else ""
    ended = f", {row.ended} ended" if row.ended else ""
    return f"{row.comm}: {counted(row.tasks, 'task')}{ended}, ran {row.run_s:.3g} s, waited {row.wait_s:.3g} s{burst}"


def critical_text(thread: CriticalThread) -> str:
    """Return what a latency-critical thread waits for, and who wakes it."""
    waits = f", waits in {thread.waits_in} ({100 * thread.waits_share:.0f} %)" if thread.waits_in else ""
    woken = f", woken by {thread.woken_by} ({100 * thread.woken_share:.0f} %)" if thread.woken_by else ""
    return f"{thread.comm} {thread.tid}, {thread.wakeups_per_s:.0f} wake-ups/s, {spread(thread.woken)}{waits}{woken}"


def change_text(change: ChangePoint) -> str:
    """Return what changed, and how sure that is."""
    before, after = change.samples
    return (
        f"change at {change.at_s:.1f} s: {change.before:.3g} -> {change.after:.3g} {_UNITS[change.quantity]} "
        f"(p {change.p:.1g}, {before} + {after} samples)"
    )


def counted(number: int, noun: str) -> str:
    """Return how many of something."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def spread(distribution: Distribution) -> str:
    """Return the quantiles of a distribution and its size."""
    if not distribution.samples:
        return "no sample"
    p50, p99 = time_text(distribution.p50_us), time_text(distribution.p99_us)
    return f"p50 {p50}, p99 {p99} ({distribution.samples})"


def time_text(us: float) -> str:
    """Return a time in the unit that suits it."""
    if us >= 1e6:
        return f"{us / 1e6:.3g} s"
    return f"{us / 1e3:.3g} ms" if us >= 1e3 else f"{us:.3g} us"
