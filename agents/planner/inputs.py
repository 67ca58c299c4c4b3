"""What the loader fills into a policy's maps, out of a measured profile: expected CPU times, and classes of programs.

Every candidate gets its inputs here, whoever planned it. Expected times and kinds are measured ones; a program is only
known by its name where a policy asks for it.
"""

from __future__ import annotations

from collections.abc import Mapping

from schedagent.core.policies.policy import CandidatePolicy, PolicyInfo
from schedagent.core.trials.workload import CommandStats, WorkloadClass, WorkloadProfile

SHORT_BURSTS, WORKERS, BACKGROUND = "short_bursts", "workers", "background"
"""The kinds of programs, see core.spec.PROGRAM_KINDS."""

_RESOLUTION_NS = 1_000_000
_SHORT = 10
"""A burst of a tenth of the heaviest program's is short."""

Numbers = tuple[tuple[int, int], ...]


def fill(info: PolicyInfo, tunables: tuple[tuple[str, int], ...], profile: WorkloadProfile) -> CandidatePolicy:
    """Return a candidate with what this profile measured in the maps that the policy has.

    Args:
        tunables: all of the policy's, as PolicyInfo.configured returns them.
    """
    return CandidatePolicy(
        policy=info.name,
        tunables=tunables,
        history=expected_times(profile) if "history" in info.inputs else (),
        classes=program_classes(info.classes, profile) if "classes" in info.inputs else (),
    )


def expected_times(profile: WorkloadProfile) -> Numbers:
    """Return (identity, expected CPU time in ns) of everything measured, by identity.

    The median and a tenth more, because a policy takes a task that outlives its expectation for one that it does not
    know; at least what taskstats can resolve; in two significant digits, because what they hide is noise.
    """
    return tuple(
        sorted(
            (row.identity, max(_RESOLUTION_NS, round_two_digits(row.cpu_ns_p50 * 11 // 10)))
            for row in profile.histories
        )
    )


def program_classes(classes: tuple[tuple[str, int], ...], profile: WorkloadProfile) -> Numbers:
    """Return (identity, class number) of every program of the profile that a policy has a class for, by identity.

    Args:
        classes: see PolicyInfo.classes. A label counts before the kind of a program.
    """
    numbers = dict(classes)
    kinds = program_kinds(profile)
    by_identity: dict[int, int] = {}
    for row in (*profile.commands, *profile.histories):
        number = numbers.get(row.label, numbers.get(kinds.get(row.identity, "")))
        if number is not None:
            by_identity[row.identity] = number
    return tuple(sorted(by_identity.items()))


def program_kinds(profile: WorkloadProfile) -> Mapping[int, str]:
    """Return the kind of each command by its identity: what runs a tenth as long per wake-up as the heaviest is short.

    The rest are workers; background, if there is latency-sensitive work beside them.
    """
    heaviest_ns = wake_burst_ns(profile.commands[0]) if profile.commands else 0
    rest = BACKGROUND if profile.kind is WorkloadClass.LATENCY_SENSITIVE else WORKERS
    return {
        row.identity: SHORT_BURSTS if wake_burst_ns(row) * _SHORT <= heaviest_ns else rest for row in profile.commands
    }


def wake_burst_ns(row: CommandStats) -> int:
    """Return the mean CPU time between two sleeps; preemption does not end a burst."""
    return row.cpu_ns_total // (row.voluntary_switches + row.count)


def round_two_digits(value: int) -> int:
    """Round a whole number to two significant digits."""
    scale = 10 ** max(0, len(str(abs(value))) - 2)
    return int(round(value / scale) * scale)
