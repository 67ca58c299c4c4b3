"""Runs inside the micro-VM as root: the real schedagentd on a real sched_ext kernel, with its unit's capabilities.

Usage: guest_deploy.py TROUBLE_OBJECT; prints what it saw as one JSON object.
"""

import json
import os
import re
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

from kernel_bpf.load.sched_ext import kernel_state
from schedagent.core.errors import SchedagentError
from tests.support.guest_daemon import CANARY, CGROUPS, WIDER, Daemon, prepare, request, until

CONFIG = """
rollback = "not_on_exit"
baseline_samples = 0
sample_s = 0.5
probation_s = { canary = 6, wider = 1, full = 1 }
"""


def worker(cgroup: str) -> subprocess.Popen[bytes]:
    """Something that always has a child of its own running, in a cgroup."""
    process = subprocess.Popen(["/bin/sh", "-c", "while :; do /bin/sleep 0.2; done"])
    (CGROUPS / cgroup.lstrip("/") / "cgroup.procs").write_text(str(process.pid))
    return process


def policies_of(process: subprocess.Popen[bytes]) -> list[int]:
    """Scheduling policies of a process and of its child, which is away for a moment between two of them."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    while True:
        with suppress(IndexError, ProcessLookupError):
            child = os.sched_getscheduler(int(children.read_text().split()[0]))
            return [os.sched_getscheduler(process.pid), child]
        time.sleep(0.02)


def life(daemon: Daemon, content: bytes, inside: subprocess.Popen[bytes], outside: subprocess.Popen[bytes]) -> dict:
    seen: dict = {"before": kernel_state().state}
    number = daemon.client.ask("deploy", **request(content))["deployment"]
    state = kernel_state()
    time.sleep(1)  # a child that was there before is gone
    seen["canary"] = {"state": state.state, "ops": state.ops, "switch_all": state.switch_all}
    seen["inside"], seen["outside"] = policies_of(inside), policies_of(outside)
    daemon.kill()
    seen["killed on probation"] = until(lambda: kernel_state().state == "disabled")
    daemon.start()
    seen["after that"] = [one["end"] for one in daemon.client.ask("history")["history"]]
    seen["inside after that"] = policies_of(inside)[0]
    number = daemon.client.ask("deploy", **request(content), again=True)["deployment"]
    until(lambda: daemon.active and daemon.active["pinned"])
    daemon.client.ask("promote", deployment=number, stage="wider", cgroup=WIDER)
    seen["outside when wider"] = policies_of(outside)[0]
    until(lambda: daemon.active["pinned"])  # for the second time, by the same daemon
    daemon.kill()
    time.sleep(1)
    seen["killed when proven"] = kernel_state().state
    daemon.start()
    seen["adopted"] = bool(daemon.active) and daemon.active["deployment"] == number
    daemon.client.ask("promote", deployment=number, stage="full")
    state = kernel_state()
    seen["full"] = {"state": state.state, "ops": state.ops, "switch_all": state.switch_all}
    until(lambda: daemon.active["pinned"])
    seen["rss_kib"] = int(re.search(r"VmRSS:\s+(\d+)", Path(f"/proc/{daemon.process.pid}/status").read_text()).group(1))
    seen["stopped"] = daemon.kill(signal.SIGTERM)
    seen["stopped when proven"] = kernel_state().state
    daemon.start()
    seen["adopted again"] = daemon.active["deployment"] == number
    return seen


def ends(daemon: Daemon, content: bytes, inside: subprocess.Popen[bytes]) -> dict:
    """What an adopted policy's own record says of its end, then a stall in a canary."""
    Path("/proc/sysrq-trigger").write_text("S")
    seen: dict = {"sysrq seen in": until(lambda: daemon.active is None)}
    [newest] = daemon.client.ask("history", limit=1)["history"]
    seen["sysrq"] = [newest["end"], newest["detail"], kernel_state().state]
    try:
        daemon.client.ask("deploy", **request(content))
    except SchedagentError as error:
        seen["again"] = error.message
    hogs = [worker(CANARY) for _ in range(4)]
    daemon.client.ask("deploy", **request(content, fault=3), again=True)
    seen["stall seen in"] = until(lambda: daemon.active is None)
    [newest] = daemon.client.ask("history", limit=1)["history"]
    seen["stall"] = [newest["end"], newest["own_words"], kernel_state().state]
    for hog in hogs:
        hog.kill()
        hog.wait()
    daemon.client.ask("deploy", **request(content), again=True)
    seen["rolled back"] = daemon.client.ask("rollback")["in_charge"]
    seen["at the end"] = [kernel_state().state, policies_of(inside)[0], len(list(Path("/sys/fs/bpf").glob("*/*")))]
    return seen


def main() -> None:
    content = Path(sys.argv[1]).read_bytes()
    prepare(CONFIG)
    inside, outside, daemon = worker(CANARY), worker(WIDER), Daemon()
    try:
        daemon.start()
        seen = life(daemon, content, inside, outside)
        seen |= ends(daemon, content, inside)
    finally:
        for process in (inside, outside):
            process.kill()
            process.wait()
    seen["ended"] = daemon.kill(signal.SIGTERM)
    sys.stdout.write("\n" + json.dumps(seen) + "\n")


if __name__ == "__main__":
    main()
