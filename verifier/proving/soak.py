"""The soak: crews come and go for minutes, and hours go by between them; what grows with that never stops growing."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from verifier.proving import groups, work
from verifier.proving.crew import Crew
from verifier.proving.ground import Ground
from verifier.proving.oracle import OracleInfo, OracleResult

ROUND_S = 1.5
STEP_S = 2 * 3600
"""The clocks go ahead by so much between two rounds."""

FEWEST_ROUNDS = 6

SOAK = OracleInfo(
    "soak", 29, 2.0, "ratio",
    "as for groups, each in the median of all rounds: crews of new identities, beside a storm of forks, with"
    f" {STEP_S // 3600} hours of all clocks between two rounds",
    "What happens at a certain time after the load, in a certain hour or after a number of tasks has its chance here."
    " The median of a group over all rounds is steadier than any round.",
)  # fmt: skip
GROWTH = OracleInfo(
    "memory growth", 28, 12.0, "MiB",
    "how much more memory the machine uses in the last third of the soak than in the first",
    "Tasks and cgroups come and go, and what a policy keeps of each has to go with it. The machine has no disk whose"
    " cache could grow.",
)  # fmt: skip

KERNEL_GROWTH = OracleInfo(
    "kernel memory growth", 28, 2.0, "MiB",
    "the same of what the kernel allocated for good: SUnreclaim, Percpu and VmallocUsed in /proc/meminfo",
    "Elements of maps and a policy's own objects are there, and nothing of user space is, whose memory comes and goes"
    " by megabytes: in some 60 rounds correct policies grow by 0.6 to 1 MiB, and one that keeps 500 bytes of every"
    " second insert by 4.4 to 5.",
)  # fmt: skip

ORACLES = (SOAK, GROWTH, KERNEL_GROWTH)

_MEMINFO = Path("/proc/meminfo")


def prove(ground: Ground, seconds: float) -> list[OracleResult]:
    """Let one crew after the other work, and hours go by between them."""
    figures: dict[str, list[float]] = {}
    used: list[Memory] = []
    clock = ground.conditions.clock
    until_s = clock.now_s() + seconds
    while (len(used) < FEWEST_ROUNDS or clock.now_s() < until_s) and ground.enabled():
        with Crew() as crew:
            crew.start("fork storm", work.fork_storm)
            worn = ground.conditions.worn.turned(len(used))
            members, fares = groups.fare(ground, ROUND_S, len(used), worn)
        for label, figure in groups.unequal(members, fares, worn, ground.conditions.reads).items():
            figures.setdefault(label, []).append(figure)
        used.append(memory_used())
        clock.set_ahead(STEP_S)
    if not ground.enabled():
        return []
    often = {label: statistics.median(seen) for label, seen in figures.items() if len(seen) > len(used) / 2}
    hours = clock.moved_s // 3600
    return [
        groups.judge(SOAK, often, len(used), len(members)),
        judge_growth(GROWTH, [memory.all_mib for memory in used], hours),
        judge_growth(KERNEL_GROWTH, [memory.kernel_mib for memory in used], hours),
    ]


@dataclass(frozen=True)
class Memory:
    """Memory in use, in MiB.

    Args:
        all_mib: what cannot be had any more.
        kernel_mib: what the kernel allocated for itself, and does not give back when memory is short.
    """

    all_mib: float
    kernel_mib: float


def memory_used() -> Memory:
    """Read /proc/meminfo (Documentation/filesystems/proc.rst)."""
    lines = (line.split(":") for line in _MEMINFO.read_text().splitlines())
    mib = {name: int(value.split()[0]) / 1024 for name, value in lines}
    return Memory(mib["MemTotal"] - mib["MemAvailable"], mib["SUnreclaim"] + mib["Percpu"] + mib["VmallocUsed"])


def judge_growth(info: OracleInfo, used_mib: Sequence[float], hours: int) -> OracleResult:
    """Judge the memory that was in use after each round."""
    third = max(1, len(used_mib) // 3)
    first, last = statistics.median(used_mib[:third]), statistics.median(used_mib[-third:])
    detail = f"{first:.1f} MiB at first, {last:.1f} MiB at last, in {len(used_mib)} rounds over {hours} hours"
    return info.judge(max(0.0, last - first), detail)
