"""Runs inside the micro-VM as root: how cgroups share the CPUs, by policy, as one JSON object.

Usage: guest_cgroups.py default NAME=OBJECT ...
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import contextmanager
from pathlib import Path

from kernel_bpf.load.sched_ext import LoadedPolicy

CGROUPS = Path("/sys/fs/cgroup")
SETTLE_S, WINDOW_S = 0.4, 2.0
MANY = 200


def make(name: str, **files: object) -> None:
    folder = CGROUPS / name
    folder.mkdir()
    for file, value in files.items():
        (folder / file.replace("__", ".")).write_text(str(value))


@contextmanager
def hogs(*names: str):
    """A task without end in each of these cgroups, which are removed afterwards."""
    pids = []
    for name in names:
        pid = os.fork()
        if pid == 0:
            (CGROUPS / name / "cgroup.procs").write_text("0")
            while True:
                pass
        pids.append(pid)
    try:
        time.sleep(SETTLE_S)
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


def used(*names: str) -> dict[str, float]:
    """CPUs that each cgroup uses."""

    def reading(name: str) -> tuple[float, float]:
        return time.monotonic(), int((CGROUPS / name / "cpu.stat").read_text().split()[1]) / 1e6

    before = {name: reading(name) for name in names}
    time.sleep(WINDOW_S)
    after = {name: reading(name) for name in names}
    return {name: round((after[name][1] - before[name][1]) / (after[name][0] - before[name][0]), 3) for name in names}


def weights() -> Mapping[str, object]:
    leaves = [f"{outer}/{inner}" for outer in ("light", "heavy") for inner in ("one", "two")]
    for outer, weight in (("light", 10), ("heavy", 1000)):
        make(outer, cpu__weight=weight, cgroup__subtree_control="+cpu")
        make(f"{outer}/one", cpu__weight=100)
        make(f"{outer}/two", cpu__weight=200)
    with hogs(*leaves, *leaves):
        first = used("light", "heavy", *leaves)
        (CGROUPS / "light/cpu.weight").write_text("500")
        changed = used("light", "heavy")
    remove(*leaves, "light", "heavy")
    return {"weights": first, "weights changed to 500:1000": changed}


def limits() -> Mapping[str, object]:
    make("fifth", cpu__max="20000 100000")
    make("most", cpu__max="150000 100000", cgroup__subtree_control="+cpu")
    make("most/child", cpu__max="30000 100000")
    make("most/rest")
    with hogs("fifth"):
        fifth = used("fifth")
        (CGROUPS / "fifth/cpu.max").write_text("50000 100000")
        changed = used("fifth")
    with hogs("most/child", "most/rest", "most/rest"):
        most = used("most", "most/child")
    remove("fifth", "most/child", "most/rest", "most")
    return {"limit": fifth, "limit changed to 50 %": changed, "limits on two levels": most}


def idle() -> Mapping[str, object]:
    make("idle", cpu__idle=1)
    make("busy")
    with hogs("idle", "idle", "busy", "busy"):
        figures = used("idle", "busy")
    remove("idle", "busy")
    return {"idle": figures}


def many() -> Mapping[str, object]:
    names = [f"group-{number}" for number in range(MANY)]
    for number, name in enumerate(names):
        make(name, cpu__weight=100 + 100 * (number % 2))
    with hogs(*names[-6:]):
        figures = used(*names[-6:])
    remove(*names)
    return {"many": [sum(list(figures.values())[0::2]), sum(list(figures.values())[1::2])]}


MEASURED: Mapping[str, tuple[Callable[[], Mapping[str, object]], ...]] = {
    "default": (weights, limits, idle),
    "fair_cgroups": (weights, limits, idle, many),
    "fifo": (weights,),
}


def measured(name: str) -> dict[str, object]:
    return {key: value for measure in MEASURED[name] for key, value in measure().items()}


def main(words: list[str]) -> None:
    if not (CGROUPS / "cgroup.controllers").exists():
        subprocess.run(["mount", "-t", "cgroup2", "none", str(CGROUPS)], check=True)
    (CGROUPS / "cgroup.subtree_control").write_text("+cpu")
    figures: dict[str, object] = {}
    for name, _, path in (word.partition("=") for word in words):
        if not path:
            figures[name] = measured(name)
            continue
        with LoadedPolicy.load(Path(path).read_bytes(), name, {}, {}, {}) as policy:
            policy.attach()
            figures[name] = measured(name)
            ended = policy.detach()
            assert ended is None or not ended.ejected, ended
    sys.stdout.write(json.dumps(figures) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
