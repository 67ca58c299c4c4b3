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
from verifier.proving.oracle import OracleInfo, OracleResult

CGROUPS = Path("/sys/fs/cgroup")
SETTLE_S = 0.35
LOOK_S = 0.05
REMOVE_S = 1.0

WEIGHTS_OF = {"light": 100, "heavy": 1000}
RATIO = 10.0
PERIOD_US = 40_000
QUOTAS = {"proving-fifth": 0.2, "proving-most": 1.5}
"""CPUs that two cgroups may use beside each other; the second needs two."""

CGROUP_WEIGHTS = OracleInfo(
    "cgroup weights", 31, 0.20, "ratio",
    "deviation of the CPU time of cgroups from 1 to 10 by cpu.weight, on two levels: the worse of them",
    "Rule 29 grants weights a fifth. Each of the two cgroups holds two more with the same weights, and each of these "
    "as many hogs as there are CPUs, so every cgroup can use what it is due. Tasks that are pinned, and cgroups that "
    "sleep, are not looked at.",
)  # fmt: skip
CGROUP_LIMITS = OracleInfo(
    "cgroup limits", 31, 0.10, "ratio",
    "deviation of the CPU time of a hog from a cpu.max of 20 % of a CPU, or by how much two hogs exceed one of 150 %",
    "Whole periods are exact, and the figure is off by a part of one at both ends of some thirty. That two hogs use "
    "less than 150 % may be the host's doing, and is not held against a policy.",
)  # fmt: skip

WEIGHT_ORACLES, LIMIT_ORACLES = (CGROUP_WEIGHTS,), (CGROUP_LIMITS,)


def prove_weights(ground: Ground, seconds: float) -> list[OracleResult]:
    """Hogs in four cgroups, two of them below each of two; how the time is shared out on both levels."""
    outer = {f"proving-{name}": weight for name, weight in WEIGHTS_OF.items()}
    inner = {f"{parent}/{name}": weight for parent in outer for name, weight in WEIGHTS_OF.items()}
    with cgroups({**outer, **inner}), Crew() as crew:
        hogs = [crew.start(f"hog in {name}", inside(name)) for name in inner for _cpu in ground.cpus]
        wait_for(ground, hogs)
        used = used_s(ground, [*outer, *inner], seconds)
    return [judge_weights(used)]


def prove_limits(ground: Ground, seconds: float) -> list[OracleResult]:
    """A hog in a cgroup with a fifth of a CPU, and two in one with one and a half."""
    quotas = {name: quota for name, quota in QUOTAS.items() if quota < len(ground.cpus)}
    with cgroups(dict.fromkeys(quotas, 100)), Crew() as crew:
        for name, quota in quotas.items():
            (CGROUPS / name / "cpu.max").write_text(f"{int(quota * PERIOD_US)} {PERIOD_US}")
        names = [name for name, quota in quotas.items() for _number in range(1 + (quota > 1))]
        hogs = [crew.start(f"hog in {name}", inside(name)) for name in names]
        wait_for(ground, hogs)
        used = used_s(ground, list(quotas), seconds)
    return [judge_limits(used)]


def judge_weights(used: Mapping[str, float]) -> OracleResult:
    """Judge the CPU time (CPUs) of each cgroup."""
    pairs = [("proving-light", "proving-heavy"), ("proving-heavy/light", "proving-heavy/heavy")]
    shares = [(used[light], used[heavy]) for light, heavy in pairs]
    detail = "; ".join(f"{light:.3f} and {heavy:.3f} CPUs" for light, heavy in shares) + " for weights of 1 to 10"
    if not all(light > 0 for light, _heavy in shares):
        return CGROUP_WEIGHTS.fail(1.0, f"{detail}: one of them had none")
    return CGROUP_WEIGHTS.judge(max(abs(heavy / light / RATIO - 1) for light, heavy in shares), detail)


def judge_limits(used: Mapping[str, float]) -> OracleResult:
    """Judge the CPU time (CPUs) of each cgroup with a quota."""
    detail = "; ".join(f"{cpus:.3f} CPUs of {QUOTAS[name]:g}" for name, cpus in used.items())
    deviations = [cpus / QUOTAS[name] - 1 for name, cpus in used.items()]
    return CGROUP_LIMITS.judge(max(abs(deviations[0]), *deviations), detail)


def used_s(ground: Ground, names: Sequence[str], seconds: float) -> dict[str, float]:
    """The CPU time that each cgroup uses, in CPUs, once they have settled."""
    for _now in ground.watch(SETTLE_S, LOOK_S):
        pass
    before = {name: reading(name) for name in names}
    for _now in ground.watch(seconds - SETTLE_S, LOOK_S):
        pass
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
        record.events = 1
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
