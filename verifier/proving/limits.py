"""Cgroups: weights through two levels, and quotas of CPU time, which the kernel leaves to a policy (rule 31).

Only policies that have the callbacks are measured: without them the static gates know that it cannot hold.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

from verifier.proving import work
from verifier.proving.conservation import wait_for
from verifier.proving.crew import Body, Crew, Record
from verifier.proving.ground import Ground
from verifier.proving.oracle import OracleInfo, OracleResult, Undecided

CGROUPS = Path("/sys/fs/cgroup")
SETTLE_S = 0.35
LOOK_S = 0.05
REMOVE_S = 1.0

LIGHT, HEAVY = "proving-light", "proving-heavy"
INNER_LIGHT, INNER_HEAVY = f"{HEAVY}/light", f"{HEAVY}/heavy"
RATIO = 10.0
PERIOD_US = 40_000
QUOTAS = {"proving-fifth": 0.2, "proving-half": 0.5}
"""CPUs that two cgroups may use, beside each other on one."""
OFF = 1.0
"""Whose weights are off by so much is not held up by the host alone: without any they are by 9."""
LOST = 0.5
"""Who loses so much of its quota is not held up by the host alone."""

CGROUP_WEIGHTS = OracleInfo(
    "cgroup weights", 31, 0.20, "ratio",
    "deviation of the CPU time of cgroups from 1 to 10 by cpu.weight, on two levels: the worse of them",
    "Rule 29 grants weights a fifth. One of two cgroups holds two more, with a hog in each that has no other below it, "
    "all on one CPU: there the default scheduler is exact, and a host that halts another one disturbs nothing. Across "
    "CPUs, and with cgroups that sleep, it is only near the weights itself.",
)  # fmt: skip
CGROUP_LIMITS = OracleInfo(
    "cgroup limits", 31, 0.10, "ratio",
    "deviation of the CPU time of two hogs from a cpu.max of 20 % and of 50 % of a CPU, the worse of them",
    "A multiple of the period is looked at, some sixty of them. A host that halts CPUs makes it less than is granted; "
    "then there is no verdict, unless more than half is missing.",
)  # fmt: skip

ORACLES = (CGROUP_WEIGHTS, CGROUP_LIMITS)


def prove(ground: Ground, seconds: float) -> list[OracleResult | Undecided]:
    """Both at once. On the last CPU a hog in a light cgroup, and two in a light and a heavy one below a heavy one; on
    the first, one in each of two cgroups with a quota.
    """
    weights = {LIGHT: 100, HEAVY: 1000, INNER_LIGHT: 100, INNER_HEAVY: 1000}
    first, last = ground.cpus[0], ground.cpus[-1]
    if first == last:
        return []
    with cgroups({**weights, **dict.fromkeys(QUOTAS, 100)}), Crew() as crew:
        for name, quota in QUOTAS.items():
            (CGROUPS / name / "cpu.max").write_text(f"{int(quota * PERIOD_US)} {PERIOD_US}")
        places = {**dict.fromkeys((LIGHT, INNER_LIGHT, INNER_HEAVY), last), **dict.fromkeys(QUOTAS, first)}
        hogs = [crew.start(f"hog in {name}", work.pinned(cpu, inside(name))) for name, cpu in places.items()]
        wait_for(ground, hogs, events=2)
        used = used_s(ground, [*weights, *QUOTAS], seconds)
    return [judge_weights(used), judge_limits({name: used[name] for name in QUOTAS})]


def judge_weights(used: Mapping[str, float]) -> OracleResult | Undecided:
    """Judge the CPU time (CPUs) of each cgroup; what is off by less than half may be the host's doing."""
    pairs = [(LIGHT, HEAVY), (INNER_LIGHT, INNER_HEAVY)]
    shares = [(used[light], used[heavy]) for light, heavy in pairs]
    detail = "; ".join(f"{light:.3f} and {heavy:.3f} CPUs" for light, heavy in shares) + " for weights of 1 to 10"
    if not all(light > 0 for light, _heavy in shares):
        return CGROUP_WEIGHTS.fail(1.0, f"{detail}: one of them had none")
    ratios = [heavy / light / RATIO for light, heavy in shares]
    deviation = max(max(ratio, 1 / ratio) - 1 if ratio else 2.0 for ratio in ratios)
    if CGROUP_WEIGHTS.bound < deviation < OFF:
        return Undecided(CGROUP_WEIGHTS.name, f"{detail}: off by {deviation:.2f}, and less than if they were ignored")
    return CGROUP_WEIGHTS.judge(deviation, detail)


def judge_limits(used: Mapping[str, float]) -> OracleResult | Undecided:
    """Judge the CPU time (CPUs) of each cgroup with a quota; a host that halts CPUs makes it less, too."""
    detail = "; ".join(f"{cpus:.3f} CPUs of {QUOTAS[name]:g}" for name, cpus in used.items())
    deviations = [cpus / QUOTAS[name] - 1 for name, cpus in used.items()]
    if max(deviations) <= CGROUP_LIMITS.bound < -min(deviations) < LOST:
        return Undecided(CGROUP_LIMITS.name, f"{detail}: less than is granted, and more than if it were forgotten")
    return CGROUP_LIMITS.judge(max(map(abs, deviations)), detail)


def used_s(ground: Ground, names: Sequence[str], seconds: float) -> dict[str, float]:
    """The CPU time that each cgroup uses, in CPUs, once they have settled."""
    for _now in ground.watch(SETTLE_S, LOOK_S):
        pass
    before = {name: reading(name) for name in names}
    periods = int((seconds - SETTLE_S) * 1e6 / PERIOD_US)
    time.sleep(periods * PERIOD_US / 1e6)
    after = {name: reading(name) for name in names}
    return {name: (after[name][1] - before[name][1]) / (after[name][0] - before[name][0]) for name in names}


def reading(name: str) -> tuple[float, float]:
    """The time, and the CPU time of a cgroup by then, both in seconds."""
    usage = (CGROUPS / name / "cpu.stat").read_text().split()[1]
    return time.monotonic(), int(usage) / 1e6


def inside(name: str) -> Body:
    """A hog in a cgroup."""

    def run(record: Record) -> NoReturn:
        (CGROUPS / name / "cgroup.procs").write_text("0")
        record.events += 1
        work.hog(record)

    return run


@contextmanager
def cgroups(weights: Mapping[str, int]) -> Iterator[None]:
    """Make cgroups of these weights, parents first, and remove them, however long their tasks take to die."""
    names = list(weights)
    for name, weight in weights.items():
        folder = CGROUPS / name
        folder.mkdir(exist_ok=True)
        (folder / "cpu.weight").write_text(str(weight))
        if any(other.startswith(f"{name}/") for other in names):
            (folder / "cgroup.subtree_control").write_text("+cpu")
    try:
        yield
    finally:
        deadline = time.monotonic() + REMOVE_S
        for name in reversed(names):
            remove(CGROUPS / name, deadline)


def remove(folder: Path, deadline: float) -> None:
    """Remove a cgroup; one whose tasks do not die is left to the end of the machine."""
    while True:
        try:
            folder.rmdir()
        except OSError:
            if time.monotonic() > deadline:
                return
            time.sleep(0.01)
        else:
            return
