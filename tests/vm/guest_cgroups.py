"""Runs inside the micro-VM as root: how cgroups share the CPUs, by policy, as one JSON object.

Usage: guest_cgroups.py default NAME=OBJECT ...
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from kernel_bpf.load.sched_ext import LoadedPolicy

CGROUPS = Path("/sys/fs/cgroup")
SETTLE_S = 0.8
WINDOW_S = 2.0
LONG_S = 6.0
"""A cgroup of weight 10 beside one of 1000 gets a hundredth."""

MANY, BUSY = 200, 20
"""Cgroups at once, and how many of them have a hog."""

ROUNDS, AT_ONCE = 15, 4
"""Cgroups that come and go."""

LAST_CPU = max(os.sched_getaffinity(0))


def make(name: str, **files: object) -> None:
    folder = CGROUPS / name
    folder.mkdir()
    for file, value in files.items():
        (folder / file.replace("__", ".")).write_text(str(value))


@contextmanager
def hogs(*names: str, cpu: int | None = None) -> Iterator[None]:
    """A task without end in each of these cgroups, on one CPU if it is named."""
    pids = []
    for name in names:
        pid = os.fork()
        if pid == 0:
            if cpu is not None:  # first, or the default scheduler remembers its load on another CPU
                os.sched_setaffinity(0, {cpu})
            (CGROUPS / name / "cgroup.procs").write_text("0")
            while True:
                pass
        pids.append(pid)
    try:
        yield
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
        for pid in pids:
            os.waitpid(pid, 0)


def remove(*names: str) -> None:
    for name in names:
        for _attempt in range(100):
            try:
                (CGROUPS / name).rmdir()
                break
            except OSError:
                time.sleep(0.01)


def used(*names: str, seconds: float = WINDOW_S) -> list[float]:
    """CPUs that each cgroup uses, once they have settled."""

    def reading(name: str) -> tuple[float, float]:
        return time.monotonic(), int((CGROUPS / name / "cpu.stat").read_text().split()[1]) / 1e6

    time.sleep(SETTLE_S)
    before = [reading(name) for name in names]
    time.sleep(seconds)
    after = [reading(name) for name in names]
    return [(now[1] - then[1]) / (now[0] - then[0]) for then, now in zip(before, after, strict=True)]


def ratio(light: float, heavy: float) -> float:
    return heavy / light if light else float("inf")


def weights() -> Mapping[str, float]:
    """Two levels of cgroups on one CPU, where the default scheduler is exact."""
    leaves = [f"{outer}/{inner}" for outer in ("light", "heavy") for inner in ("one", "two")]
    for outer, weight in (("light", 10), ("heavy", 1000)):
        make(outer, cpu__weight=weight, cgroup__subtree_control="+cpu")
        make(f"{outer}/one", cpu__weight=100)
        make(f"{outer}/two", cpu__weight=200)
    with hogs(*leaves, cpu=LAST_CPU):
        light, heavy, one, two = used("light", "heavy", "heavy/one", "heavy/two", seconds=LONG_S)
        (CGROUPS / "light/cpu.weight").write_text("500")
        changed = used("light", "heavy")
    remove(*leaves, "light", "heavy")
    return {"10:1000": ratio(light, heavy), "100:200 below": ratio(one, two), "10 changed to 500": ratio(*changed)}


def limits() -> Mapping[str, float]:
    """Quotas on two levels, on all CPUs."""
    make("fifth", cpu__max="20000 100000")
    make("most", cpu__max="150000 100000", cgroup__subtree_control="+cpu")
    make("most/child", cpu__max="30000 100000")
    make("most/rest")
    with hogs("fifth"):
        (fifth,) = used("fifth")
        (CGROUPS / "fifth/cpu.max").write_text("50000 100000")
        (changed,) = used("fifth")
        (CGROUPS / "fifth/cpu.max").write_text("max")
        (lifted,) = used("fifth", seconds=WINDOW_S / 2)
    with hogs("most/child", "most/rest", "most/rest"):
        most, child = used("most", "most/child")
    remove("fifth", "most/child", "most/rest", "most")
    figures = {"20 %": fifth, "20 % changed to 50 %": changed, "50 % changed to none": lifted}
    return {**figures, "150 %": most, "30 % below 150 %": child}


def idle() -> Mapping[str, float]:
    make("idle", cpu__idle=1)
    make("busy")
    with hogs("idle", "busy", cpu=LAST_CPU):
        lazy, busy = used("idle", "busy")
    remove("idle", "busy")
    return {"cpu.idle": busy / (busy + lazy)}


def many() -> Mapping[str, float]:
    """Hogs in some of many cgroups, those of each weight together."""
    names = [f"group-{number}" for number in range(MANY)]
    for number, name in enumerate(names):
        make(name, cpu__weight=100 + 100 * (number % 2))
    with hogs(*names[-BUSY:], cpu=LAST_CPU):
        figures = used(*names[-BUSY:])
    remove(*names)
    return {f"100:200 among {MANY}": ratio(sum(figures[0::2]), sum(figures[1::2]))}


def come_and_go() -> Mapping[str, float]:
    """Cgroups with weights, limits and tasks come and go beside two that stay, and two that come last."""
    make("stays", cpu__weight=100)
    make("weighs", cpu__weight=300)
    with hogs("stays", "weighs", cpu=LAST_CPU):
        for number in range(ROUNDS):
            names = [f"guest-{number}-{which}" for which in range(AT_ONCE)]
            for name in names:
                make(name, cpu__weight=50 * (number + 1), cpu__max="5000 20000")
            with hogs(*names):
                time.sleep(0.05)
            remove(*names)
        figures = used("stays", "weighs")
    make("late", cpu__max="20000 100000")
    with hogs("late"):
        (late,) = used("late")
    remove("stays", "weighs", "late")
    return {"100:300 after others": ratio(*figures), "20 % after others": late}


MEASURES: tuple[Callable[[], Mapping[str, float]], ...] = (weights, limits, idle, many, come_and_go)


def measured() -> dict[str, float]:
    return {key: round(value, 4) for measure in MEASURES for key, value in measure().items()}


def main(words: list[str]) -> None:
    if not (CGROUPS / "cgroup.controllers").exists():
        subprocess.run(["mount", "-t", "cgroup2", "none", str(CGROUPS)], check=True)
    (CGROUPS / "cgroup.subtree_control").write_text("+cpu")
    figures: dict[str, dict[str, float]] = {}
    for name, _, path in (word.partition("=") for word in words):
        if not path:
            figures[name] = measured()
            continue
        with LoadedPolicy.load(Path(path).read_bytes(), name, {}, {}, {}) as policy:
            policy.attach()
            figures[name] = measured()
            ended = policy.detach()
            assert ended is None or not ended.ejected, (name, ended, figures)
    sys.stdout.write(json.dumps(figures) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
