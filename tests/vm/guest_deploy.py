"""Runs inside the micro-VM as root: the real schedagentd on a real sched_ext kernel, with its unit's capabilities.

Usage: guest_deploy.py STARVE_OBJECT TROUBLE_OBJECT [PULSES]; prints what it saw as one JSON object: the whole life of a
policy, or with PULSES so many pulses of a second.

This program is a real-time task above schedagentd, or it could not measure what happens to all others.
"""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from kernel_bpf.load.sched_ext import kernel_state
from schedagent.core.errors import SchedagentError
from tests.support import guest_daemon
from tests.support.guest_daemon import CANARY, CGROUPS, MEMBER, Daemon, own_a_cpu, prepare, until

CONFIG = """
rollback = "not_on_exit"
baseline_samples = 0
sample_s = 0.5
pulses_s = [1]
probation_s = { canary = 30, full = 1 }
bounds = { worse_ratio = 4, delay_floor_s = 0.5, pressure_floor = 0.9, share_floor = 0.9, starvation_s = 30 }
"""
"""Bounds wide enough for an emulated machine: what is in charge when, and for how long, is what this is about."""

SPIN = "while :; do :; done"
OTHERS = "/others"
CHILDREN = "while :; do /bin/sleep 0.2; done"
POLL_S = 0.01


def request(content: bytes, **changes: object) -> dict:
    """What deploys starve.bpf.c, whose watchdog is patient enough for an emulated machine."""
    return guest_daemon.request(content, **{"policy": "starve"} | changes)


def be_real_time() -> None:
    """Above schedagentd, whose children are ordinary tasks all the same."""
    os.sched_setscheduler(0, os.SCHED_RR | os.SCHED_RESET_ON_FORK, os.sched_param(2))


@contextmanager
def workers(program: str, *cgroups: str) -> Iterator[list[subprocess.Popen[bytes]]]:
    """Shells that run a program, one in each cgroup; killed in the end."""
    begun = []
    try:
        for cgroup in cgroups:
            begun.append(subprocess.Popen(["/bin/sh", "-c", program]))
            (CGROUPS / cgroup.lstrip("/") / "cgroup.procs").write_text(str(begun[-1].pid))
        yield begun
    finally:
        for process in begun:
            process.kill()
            process.wait()


def policies_of(process: subprocess.Popen[bytes]) -> list[int]:
    """Scheduling policies of a process and of its child, which is away for a moment between two of them."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    while True:
        with suppress(IndexError, ProcessLookupError):
            child = os.sched_getscheduler(int(children.read_text().split()[0]))
            return [os.sched_getscheduler(process.pid), child]
        time.sleep(0.02)


def is_default() -> bool:
    return kernel_state().state == "disabled"


def is_enabled() -> bool:
    """Whether a policy schedules tasks: while one is being enabled or disabled the kernel itself does."""
    return kernel_state().state == "enabled"


def shown() -> dict:
    state = kernel_state()
    return {"state": state.state, "ops": state.ops, "switch_all": state.switch_all}


def used_s() -> list[float]:
    """CPU time of the measured scope, and of the others that want as much."""
    paths = (CGROUPS / cgroup.lstrip("/") / "cpu.stat" for cgroup in (MEMBER, OTHERS))
    return [int(path.read_text().split()[1]) * 1e-6 for path in paths]


def part(before: list[float], after: list[float]) -> float:
    """The measured scope's part of what both got; what real-time tasks took is in neither."""
    scope, others = (now - then for then, now in zip(before, after, strict=True))
    return scope / (scope + others)


def part_of(seconds: float) -> float:
    """The same, from now on."""
    before = used_s()
    time.sleep(seconds)
    return part(before, used_s())


class Windows:
    """When a policy was in charge, by sysfs, and what the measured scope got meanwhile and in between."""

    def __init__(self) -> None:
        self.lengths: list[float] = []
        self.got: dict[bool, list[float]] = {True: [0.0, 0.0], False: [0.0, 0.0]}
        """What both got so far, in pulses and in between."""
        self.begin()

    def begin(self) -> None:
        """Look from now on."""
        self._since, self._used, self._enabled = time.monotonic(), used_s(), is_enabled()

    @property
    def lasts_s(self) -> float:
        """For how long a policy has been in charge; 0 while none is."""
        return time.monotonic() - self._since if self._enabled else 0.0

    def look(self) -> None:
        enabled = is_enabled()
        if enabled != self._enabled:
            now, used = time.monotonic(), used_s()
            spent = (now_s - then_s for then_s, now_s in zip(self._used, used, strict=True))
            self.got[self._enabled] = [sum(times) for times in zip(self.got[self._enabled], spent, strict=True)]
            self.lengths += [now - self._since] if self._enabled else []
            self._since, self._used, self._enabled = now, used, enabled

    def summary(self) -> dict:
        pulses, rests = (part([0.0, 0.0], self.got[enabled]) for enabled in (True, False))
        late = sorted(length - 1 for length in self.lengths)
        return {"count": len(late), "late_s": late, "median_late_s": late[len(late) // 2]} | {
            "pulses": pulses,
            "rests": rests,
        }


def newest(daemon: Daemon) -> dict:
    return daemon.client.ask("history", limit=1)["history"][0]


def by_pulses(content: bytes, **changes: object) -> dict:
    return request(content, stage="pulse", cgroup=MEMBER, again=True, **changes)


def watch(daemon: Daemon, content: bytes, windows: Windows) -> int:
    """Deploy by pulses and look at each window, until it stays; return its number."""
    number = daemon.client.ask("deploy", **by_pulses(content))["deployment"]
    asked_at = 0.0
    while True:
        windows.look()
        time.sleep(POLL_S)
        if windows.lasts_s > 2 and time.monotonic() > asked_at + 0.5:  # asking takes its time, and so do looks then
            asked_at = time.monotonic()
            active = daemon.active
            if active and active["stage"] == "full":
                return number


# The scenes


def canary(daemon: Daemon, content: bytes) -> dict:
    seen: dict = {"before": kernel_state().state}
    with workers(CHILDREN, CANARY, MEMBER) as (inside, outside):
        try:
            daemon.client.ask("deploy", **request(content, cgroup=MEMBER))
        except SchedagentError as error:
            seen["refused"] = error.message
        with own_a_cpu(CANARY):
            daemon.client.ask("deploy", **request(content))
            time.sleep(1)  # a child that was there before is gone
            seen["canary"] = shown()
            seen["inside"], seen["outside"] = policies_of(inside), policies_of(outside)
            daemon.kill()
            seen["killed"] = until(is_default)
        daemon.start()
        seen["end"], seen["inside after that"] = newest(daemon)["end"], policies_of(inside)[0]
    return seen


def pulses(daemon: Daemon, content: bytes) -> dict:
    """Two busy tasks in the scope, two elsewhere, two CPUs: half of the machine is the scope's."""
    with workers(SPIN, MEMBER, MEMBER, OTHERS, OTHERS):
        seen: dict = {"default": part_of(2)}
        with daemon.client.trial(request(content, order_only=True), 10, again=True) as trial:
            time.sleep(0.3)
            seen["full switch"], seen["trial"] = part_of(2), shown()
        seen["after the trial"] = [kernel_state().state, trial.ended["end"], trial.ended["detail"]]
        windows = Windows()
        number = watch(daemon, content, windows)
        seen["windows"] = windows.summary()
    seen["full"] = shown()
    until(lambda: daemon.active["pinned"])
    pid = daemon.process.pid
    seen["rss_kib"] = int(re.search(r"VmRSS:\s+(\d+)", Path(f"/proc/{pid}/status").read_text()).group(1))
    daemon.kill()
    time.sleep(1)
    seen["killed when proven"] = kernel_state().state
    daemon.start()
    seen["adopted"] = bool(daemon.active) and daemon.active["deployment"] == number
    seen["stopped"] = daemon.kill(signal.SIGTERM)
    seen["stopped when proven"] = kernel_state().state
    daemon.start()
    seen["adopted again"] = daemon.active["deployment"] == number
    return seen


def ends(daemon: Daemon, content: bytes) -> dict:
    """What an adopted policy's own record says of its end."""
    Path("/proc/sysrq-trigger").write_text("S")
    seen: dict = {"sysrq seen in": until(lambda: daemon.active is None)}
    seen["sysrq"] = [newest(daemon)["end"], newest(daemon)["detail"], kernel_state().state]
    try:
        daemon.client.ask("deploy", **by_pulses(content) | {"again": False})
    except SchedagentError as error:
        seen["again"] = error.message
    return seen


def stall(daemon: Daemon, content: bytes) -> list:
    """A policy that loses tasks, in a trial."""
    time.sleep(1.5)  # the default scheduler is in charge before a trial
    losing = request(content, policy="trouble", fault=3, order_only=True)
    with workers(SPIN, MEMBER, MEMBER, MEMBER), daemon.client.trial(losing, 60, again=True) as trial:
        until(lambda: daemon.active is None)
    return [trial.ended["end"], trial.ended["own_words"], kernel_state().state]


def killed(daemon: Daemon, content: bytes) -> dict:
    """kill -9 in a pulse, in a trial, of schedagentd, of its client and of both."""
    seen: dict = {}

    def client() -> int:
        child = os.fork()
        if child == 0:
            with suppress(BaseException), daemon.client.trial(request(content, order_only=True), 60, again=True):
                time.sleep(600)
            os._exit(0)
        return child

    def end(child: int) -> None:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)

    daemon.client.ask("deploy", **by_pulses(content))
    until(lambda: not is_default())
    daemon.kill()
    seen["in a pulse"] = until(is_default)
    daemon.start()
    ways: dict[str, Callable[[int], object]] = {
        "client": end,
        "both": lambda child: (end(child), daemon.kill()),
        "schedagentd": lambda child: (daemon.kill(), end(child)),
    }
    for name, kill in ways.items():
        time.sleep(1.5)
        child = client()
        until(lambda: not is_default())
        kill(child)
        seen[name] = until(is_default)
        if name != "client":
            daemon.start()
    return seen


def left(daemon: Daemon, content: bytes) -> dict:
    daemon.client.ask("deploy", **by_pulses(content))
    seen: dict = {"rolled back": daemon.client.ask("rollback")["in_charge"]}
    seen["at the end"] = [kernel_state().state, len(list(Path("/sys/fs/bpf").glob("*/*")))]
    return seen


def many(daemon: Daemon, content: bytes, count: int) -> dict:
    """So many pulses, over as many roll-outs as that takes."""
    windows = Windows()
    with workers(SPIN, MEMBER, MEMBER, OTHERS, OTHERS):
        while len(windows.lengths) < count:
            watch(daemon, content, windows)
            daemon.client.ask("rollback", to_default=True)
            windows.begin()  # what stayed until it was rolled back was no pulse
    return windows.summary()


def main() -> None:
    content, losing = (Path(path).read_bytes() for path in sys.argv[1:3])
    count = int(sys.argv[3]) if len(sys.argv) > 3 else 0
    prepare(CONFIG)
    (CGROUPS / OTHERS.lstrip("/")).mkdir()
    daemon = Daemon()
    be_real_time()
    daemon.start()
    if count:
        seen = many(daemon, content, count)
    else:
        seen = {scene.__name__: scene(daemon, content) for scene in (canary, pulses, ends, killed, left)}
        seen["stall"] = stall(daemon, losing)
    seen["ended"] = daemon.kill(signal.SIGTERM)
    sys.stdout.write("\n" + json.dumps(seen) + "\n")


if __name__ == "__main__":
    main()
