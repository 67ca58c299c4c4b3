"""Runs inside the micro-VM as root: drives the loader on real policies and prints what it saw as one JSON object.

Usage: guest_load.py TROUBLE_OBJECT UNREADABLE_OBJECT VISITOR_OBJECT SILENT_OBJECT TRACED_OBJECT
"""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from kernel_bpf.load.sched_ext import LoadedPolicy, kernel_state
from schedagent.core.errors import SchedagentError


def data(policy: LoadedPolicy, name: str) -> int:
    variable = policy._object.variables(".data")[name]
    return int.from_bytes(policy._object.read_variable(".data", variable.offset, variable.size_bytes), "little")


def refusal(attempt: Callable[[], Any]) -> list[str]:
    try:
        attempt()
    except SchedagentError as error:
        return [type(error).__name__, str(error)]
    return ["nothing was raised", ""]


def watch(policy: LoadedPolicy, seconds: float) -> float:
    """Seconds until the policy is no longer enabled."""
    start = time.monotonic()
    while policy.enabled() and time.monotonic() - start < seconds:
        time.sleep(0.05)
    return time.monotonic() - start


def orderly(trouble: bytes) -> dict[str, Any]:
    with LoadedPolicy.load(trouble, "trouble", {"slice_us": 300}, {42: 2**40}, {42: 3}) as policy:
        seen: dict[str, Any] = {"stats": policy.verifier_stats(), "enabled before": policy.enabled()}
        seen["state before"] = asdict(kernel_state())
        policy.attach()
        subprocess.run(["/bin/true"], check=True)
        seen |= {name: data(policy, name) for name in ("history_of_42", "class_of_42", "execs")}
        seen |= {"slice_us": policy._object.tunable_value("slice_us"), "state": asdict(kernel_state())}
        seen |= {"enabled": policy.enabled(), "exit while enabled": policy.exit_info()}
        with LoadedPolicy.load(trouble, "trouble", {}, {}, {}) as second:
            seen["second"] = refusal(second.attach)
            seen["enabled after second"] = [policy.enabled(), second.enabled()]
        first, again = policy.detach(), policy.detach()
        seen |= {"exit": asdict(first), "same exit": first == again, "enabled after": policy.enabled()}
    return seen | {"state after": asdict(kernel_state()), "exit after close": policy.exit_info() == first}


def faulty(trouble: bytes, fault: int) -> dict[str, Any]:
    hogs = [subprocess.Popen(["/bin/sh", "-c", "while :; do :; done"]) for _ in range(4)]
    try:
        with LoadedPolicy.load(trouble, "trouble", {"fault": fault}, {}, {}) as policy:
            raised = refusal(policy.attach)
            lasted_s = watch(policy, 10)
            info = policy.exit_info()
            return {"raised": raised, "lasted_s": lasted_s, "enabled": policy.enabled(), "exit": asdict(info)} | {
                "ejected": info.ejected,
                "state": (policy.detach(), kernel_state().state)[1],
            }
    finally:
        for hog in hogs:
            hog.kill()
            hog.wait()


def renamed(trouble: bytes) -> list[Any]:
    with LoadedPolicy.load(trouble, "other", {}, {}, {}) as policy:
        policy.attach()
        return [policy.ops_name, kernel_state().ops, policy.enabled()]


def with_heir(trouble: bytes) -> list[Any]:
    """A process that was forked from the loader holds the link's file, too."""
    with LoadedPolicy.load(trouble, "trouble", {}, {}, {}) as policy:
        policy.attach()
        heir = os.fork()
        if heir == 0:
            time.sleep(600)
            os._exit(0)
        try:
            return [refusal(lambda: policy.detach(timeout_s=3.0)), kernel_state().state]
        finally:
            os.kill(heir, signal.SIGKILL)
            os.waitpid(heir, 0)


def visit(foreign: bytes, tunables: dict[str, int]) -> dict[str, Any]:
    """A policy written elsewhere: in charge for a moment, then ended, by us or by the kernel."""
    hogs = [subprocess.Popen(["/bin/sh", "-c", "while :; do :; done"]) for _ in range(3)]
    try:
        with LoadedPolicy.load(foreign, "foreign", tunables, {}, {}, watchdog_ms=1000) as policy:
            raised = refusal(policy.attach)
            seen = {"raised": raised, "enabled": policy.enabled(), "ops": kernel_state().ops}
            seen["lasted_s"] = watch(policy, 10 if tunables else 0.2)
            info = policy.detach()
            return seen | {"records": policy.records_exit, "exit": asdict(info) if info else None}
    finally:
        for hog in hogs:
            hog.kill()
            hog.wait()


def trace(traced: bytes) -> dict[str, Any]:
    """A policy that traces a kernel function."""
    with LoadedPolicy.load(traced, "traced", {}, {}, {}) as policy:
        policy.attach()
        _join_a_thread()
        return {"enabled": policy.enabled(), "untraced": policy.untraced, "calls": data(policy, "calls")}


def _join_a_thread() -> None:
    """Wait for a thread that sleeps: a futex."""
    thread = threading.Thread(target=time.sleep, args=(0.2,))
    thread.start()
    thread.join()


def main() -> None:
    trouble, unreadable, visitor, silent, traced = (Path(path).read_bytes() for path in sys.argv[1:6])
    seen = {
        "orderly": orderly(trouble),
        "init": faulty(trouble, 1),
        "error": faulty(trouble, 2),
        "stall": faulty(trouble, 3),
        "unreadable": refusal(lambda: LoadedPolicy.load(unreadable, "unreadable", {}, {}, {})),
        "no tunable": refusal(lambda: LoadedPolicy.load(unreadable, "unreadable", {"x": 1}, {}, {})),
        "full map": refusal(lambda: LoadedPolicy.load(trouble, "trouble", {}, {n: n for n in range(17)}, {})),
        "another name": renamed(trouble),
        "heir": with_heir(trouble),
        "visitor": visit(visitor, {}),
        "losing visitor": visit(visitor, {"lose": 1}),
        "silent": visit(silent, {}),
        "leaving": visit(silent, {"leave": 1}),
        "traced": trace(traced),
        "at the end": asdict(kernel_state()),
    }
    sys.stdout.write("\n" + json.dumps(seen, default=asdict) + "\n")


if __name__ == "__main__":
    main()
