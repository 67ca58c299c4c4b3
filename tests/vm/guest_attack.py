"""Runs inside the micro-VM as root: schedagentd, and what would blind, starve, kill or outlive it.

Usage: guest_attack.py STARVE_OBJECT GREEDY_OBJECT SPRAWLING_OBJECT; prints what it saw as one JSON object.

This program is a real-time task above schedagentd, or it could not measure what happens to all others. There is no
systemd here, so it does what systemd would: kills a daemon that has not notified it for WATCHDOG_USEC, and runs the
units' own commands.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from kernel_bpf.load.linux import mount, unmount
from kernel_bpf.load.sched_ext import kernel_state
from schedagent.core.errors import SchedagentError
from schedagent.schedagentd.kernel import PINS
from tests.support.guest_daemon import CGROUPS, FOLDER, Daemon, prepare, request, until
from tests.support.unit_commands import command

CONFIG = """
rollback = "not_on_exit"
direct_full = true
baseline_samples = 0
sample_s = 0.5
probation_s = { canary = 1, full = 1 }
"""
NOTIFY, WATCHDOG_S = FOLDER / "notify", 3.0
LEASE_S = 6.0
BOMB = """import os, signal
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
while True:
    try:
        os.fork()
    except OSError:
        pass
"""
HOG = "held = []\nwhile True:\n    held.append(bytearray(b'x' * (1 << 20)))"


def be_real_time() -> None:
    """Above schedagentd, whose children are ordinary tasks all the same."""
    os.sched_setscheduler(0, os.SCHED_RR | os.SCHED_RESET_ON_FORK, os.sched_param(2))


def is_default() -> bool:
    return kernel_state().state == "disabled"


@contextmanager
def attack(program: str, copies: int, memory: str = "max") -> Iterator[None]:
    """Processes in a control group of their own, of at most 300, all killed in the end."""
    group = CGROUPS / "attack"
    group.mkdir(exist_ok=True)
    (group / "pids.max").write_text("300")
    (group / "memory.max").write_text(memory)
    words = [sys.executable, "-c", f"open('{group}/cgroup.procs', 'w').write('0')\n{program}"]
    begun = [subprocess.Popen(words, stderr=subprocess.DEVNULL) for _ in range(copies)]
    try:
        yield
    finally:
        (group / "cgroup.kill").write_text("1")
        for process in begun:
            process.wait()


def count(group: str, field: str) -> int:
    """A counter of a control group: how often it hit its limit."""
    name, _, key = field.partition(":")
    lines = (CGROUPS / group / name).read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.split()[0] == key)


class Scene:
    """One daemon after the other over one record; each scene ends with the default scheduler."""

    def __init__(self, starve: bytes) -> None:
        self.starve = starve
        self.notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.notify.bind(str(NOTIFY))
        watched = {"NOTIFY_SOCKET": str(NOTIFY), "WATCHDOG_USEC": str(int(WATCHDOG_S * 1e6))}
        self.daemon = Daemon(**watched)

    def deploy(self, fault: int = 0, **changes: object) -> int:
        wanted = {"policy": "starve", "stage": "full", "cgroup": "", "again": True} | changes
        return self.daemon.client.ask("deploy", **request(self.starve, fault, **wanted))["deployment"]

    def ends_in(self, begun: float, limit_s: float = 60.0) -> float:
        """Seconds since then until the default scheduler is in charge."""
        until(is_default, limit_s)
        return time.monotonic() - begun

    @property
    def newest(self) -> dict:
        return self.daemon.client.ask("history", limit=1)["history"][0]

    def is_pinned(self) -> bool:
        active = self.daemon.active
        return bool(active and active["pinned"])

    # The scenes

    def protected(self) -> dict:
        pid = self.daemon.process.pid
        status = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
        return {
            "policy": os.sched_getscheduler(pid) == os.SCHED_RR | os.SCHED_RESET_ON_FORK,
            "locked_kib": int(status["VmLck"].split()[0]),
            "rss_kib": int(status["VmRSS"].split()[0]),
            "oom": int(Path(f"/proc/{pid}/oom_score_adj").read_text()),
        }

    def starved(self) -> dict:
        """Nothing but real-time tasks runs any more; the kernel would notice after 10 s."""
        begun = time.monotonic()
        self.deploy(fault=1)
        lasted_s = self.ends_in(begun)
        return {"lasted_s": lasted_s, "end": self.newest["end"], "kernel": kernel_state().nr_rejected}

    def bombed(self) -> dict:
        self.deploy(lease_s=LEASE_S)
        begun = time.monotonic()
        with attack(BOMB, 4):
            until(lambda: count("attack", "pids.events:max") > 100)
            lasted_s = self.ends_in(begun)
            refused = count("attack", "pids.events:max")
        newest = self.newest
        return {"lasted_s": lasted_s, "end": newest["end"], "detail": newest["detail"], "refused forks": refused}

    def hungry(self) -> dict:
        """Ended by a rollback while all memory is wanted by others."""
        self.deploy()
        pid = self.daemon.process.pid
        with attack(HOG, 2):
            killed = count("attack", "memory.events:oom_kill")
            until(lambda: count("attack", "memory.events:oom_kill") > killed)
            begun = time.monotonic()
            self.daemon.client.ask("rollback", to_default=True)
            lasted_s = self.ends_in(begun)
        return {"lasted_s": lasted_s, "alive": self.daemon.process.poll() is None and self.daemon.process.pid == pid}

    def greedy(self, content: bytes) -> dict:
        """100 MiB in .bss."""
        number = self.daemon.client.ask("deploy", **request(content, policy="greedy", stage="full", cgroup=""))[
            "deployment"
        ]
        newest = self.newest
        return {"same": newest["deployment"] == number, "end": newest["end"], "detail": newest["detail"]} | {
            "default": is_default(),
            "alive": self.daemon.process.poll() is None,
        }

    def sprawling(self, content: bytes) -> dict:
        """As much as is allowed, with the exit record in the middle of it."""
        self.daemon.client.ask("deploy", **request(content, policy="sprawling", stage="full", cgroup=""))
        until(self.is_pinned)
        rss_kib = self.protected()["rss_kib"]
        Path("/proc/sysrq-trigger").write_text("S")
        until(lambda: self.daemon.active is None)
        return {"rss_kib": rss_kib, "end": self.newest["end"], "detail": self.newest["detail"]}

    def stopped(self) -> dict:
        """SIGSTOP; systemd's watchdog kills what does not notify it, by the signal that the unit names."""
        self.deploy(lease_s=600)
        os.kill(self.daemon.process.pid, signal.SIGSTOP)
        begun = time.monotonic()
        self.notify.settimeout(WATCHDOG_S)
        with suppress(TimeoutError):
            while True:
                self.notify.recv(4096)
        self.daemon.kill(signal.SIGKILL)
        lasted_s = self.ends_in(begun)
        self.daemon.start()
        return {"lasted_s": lasted_s, "end": self.newest["end"], "detail": self.newest["detail"]}

    def full(self) -> dict:
        """Not a byte is left where the record is."""
        self.deploy(lease_s=LEASE_S)
        begun = time.monotonic()
        with suppress(OSError), (FOLDER / "state" / "filling").open("wb", buffering=0) as file:
            while True:
                file.write(bytes(65536))
        try:
            lasted_s = self.ends_in(begun)
        finally:
            (FOLDER / "state" / "filling").unlink()
        until(lambda: self.daemon.client.ask("status")["unsaved"] == [])
        return {"lasted_s": lasted_s, "end": self.newest["end"]}

    def killed(self, order: str, lease_s: float, then: Callable[[float], None]) -> dict:
        """A pinned policy, its keeper and schedagentd; both are killed, and no schedagentd can be started again."""
        number = self.deploy()
        until(self.is_pinned)
        self.daemon.client.ask("renew", deployment=number, lease_s=lease_s)
        begun = time.monotonic()
        keeper = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
        victims = {"schedagentd": self.daemon.kill, "keeper": keeper.kill}
        for victim in order.split():
            victims[victim]()
        keeper.wait()
        (FOLDER / "c.toml").rename(FOLDER / "gone.toml")
        refused = self.refuses_to_start()
        survived = not is_default()
        then(begun)
        lasted_s = time.monotonic() - begun
        (FOLDER / "gone.toml").rename(FOLDER / "c.toml")
        left = [path.name for path in PINS.iterdir()] if PINS.exists() else []
        self.daemon.start()
        return {"survived": survived, "refused": refused, "lasted_s": lasted_s, "left": left, "end": self.newest["end"]}

    def refuses_to_start(self) -> int:
        words = [sys.executable, "-m", "schedagent.schedagentd", "--config", f"{FOLDER}/c.toml"]
        return subprocess.run(words, stderr=subprocess.DEVNULL, check=False).returncode


def by_timer(_begun: float) -> None:
    """What schedagentd-lease.timer does, every second here, until the policy is gone."""

    def gone() -> bool:
        subprocess.run(command("schedagentd-lease.service"), check=True, stdout=subprocess.DEVNULL)
        return is_default()

    until(gone, 60)


def by_failure(_begun: float) -> None:
    """What OnFailure= of schedagentd.service starts."""
    subprocess.run(command("schedagentd-unpin.service"), check=True)
    until(is_default, 60)


def main() -> None:
    starve, greedy, sprawling = (Path(path).read_bytes() for path in sys.argv[1:4])
    prepare(CONFIG)
    (CGROUPS / "cgroup.subtree_control").write_text("+memory +pids")
    (FOLDER / "state").mkdir(mode=0o700)
    mount("tmpfs", FOLDER / "state", "tmpfs", options="size=8m,mode=700")
    scene = Scene(starve)
    be_real_time()
    scene.daemon.start()
    seen: dict = {}
    scenes: dict[str, Callable[[], dict]] = {
        "protected": scene.protected,
        "greedy": lambda: scene.greedy(greedy),
        "sprawling": lambda: scene.sprawling(sprawling),
        "starved": scene.starved,
        "bombed": scene.bombed,
        "hungry": scene.hungry,
        "stopped": scene.stopped,
        "full": scene.full,
        "keeper first": lambda: scene.killed("keeper schedagentd", 2 * LEASE_S, by_timer),
        "schedagentd first": lambda: scene.killed("schedagentd keeper", 600.0, by_failure),
    }
    for name, play in scenes.items():
        begun = time.monotonic()
        try:
            seen[name] = play()
        except (SchedagentError, OSError, TimeoutError) as error:
            seen[name] = {"failed": f"{type(error).__name__}: {error}"}
        seen[name] |= {"took_s": time.monotonic() - begun}
    seen["ended"] = scene.daemon.kill(signal.SIGTERM)
    unmount(FOLDER / "state")
    sys.stdout.write("\n" + json.dumps(seen) + "\n")


if __name__ == "__main__":
    main()
