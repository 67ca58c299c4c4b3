"""Runs inside the micro-VM as root: watches a small load with the probe, and prints what it saw as one JSON object."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from kernel_bpf.load.linux import set_name
from kernel_bpf.observe.sched_probe import SchedProbe, Scope
from schedagent.core.host_profile import to_json
from schedagent.observing.measure import Order, observe
from schedagent.observing.perfetto import chrome_trace
from schedagent.observing.scope import Target
from schedagent.observing.text import summary

HOGS, AGREEMENT_S, PROFILE_S, ENDED = 3, 1.5, 1.5, 3
BARE = ["setpriv", "--bounding-set", "-all,+bpf,+perfmon", "--inh-caps", "-all"]


def ping_pong() -> int:
    """Start 'clock', which asks 'echo' for an answer a hundred times a second; return its pid."""
    clock = os.fork()
    if clock:
        return clock
    questions, answers = os.pipe(), os.pipe()
    if os.fork() == 0:
        set_name("echo")
        while os.read(questions[0], 1):
            os.write(answers[1], b"x")
    set_name("clock")
    while True:
        time.sleep(0.01)
        os.write(questions[1], b"x")
        os.read(answers[0], 1)


def schedstat(pid: int) -> list[int]:
    return [int(number) for number in Path(f"/proc/{pid}/schedstat").read_text().split()]


def agreement() -> dict[str, Any]:
    """What the kernel's own counters and the probe say of the same tasks over the same time, in ns and runs.

    The tasks are stopped while both are read, so that both show the same moment.
    """
    with SchedProbe.attach(Scope()) as probe:
        processes = [subprocess.Popen(["/bin/sh", "-c", "while :; do :; done"]) for _ in range(HOGS)]
        hogs = [process.pid for process in processes]
        try:
            before, first = counters(probe, hogs)
            send(hogs, signal.SIGCONT)
            time.sleep(AGREEMENT_S)
            after, last = counters(probe, hogs)
        finally:
            send(hogs, signal.SIGKILL)
            for process in processes:
                process.wait()
        for _number in range(ENDED):
            subprocess.run(["/bin/true"], check=True)
        reading, memory = probe.read(), probe._object.memory_bytes()
    rows = []
    for pid in hogs:
        kernel = [now - then for now, then in zip(after[pid], before[pid], strict=True)]
        rows.append({"kernel": kernel, "probe": [now - then for now, then in zip(last[pid], first[pid], strict=True)]})
    ended = {command.comm.decode(): [command.tasks, sum(command.lived_ms)] for command in reading.commands}
    return {"rows": rows, "lost": reading.lost, "interrupts_known": reading.interrupts_known} | {
        "memory": memory,
        "ended": ended,
    }


def counters(probe: SchedProbe, hogs: list[int]) -> tuple[dict[int, list[int]], dict[int, list[int]]]:
    send(hogs, signal.SIGSTOP)
    time.sleep(0.1)
    figures = {task.tid: task.figures for task in probe.tasks()}
    ours = {pid: [figures[pid].run_ns, figures[pid].wait_ns, figures[pid].runs] for pid in hogs}
    return {pid: schedstat(pid) for pid in hogs}, ours


def send(pids: list[int], number: signal.Signals) -> None:
    for pid in pids:
        os.kill(pid, number)


def profile(pid: int) -> dict[str, Any]:
    begin = time.monotonic()
    observed = observe(Order(Target(pid=pid), PROFILE_S, tier=2, tracing=True))
    trace = json.loads("".join(chrome_trace(observed.switches, observed.more_switches, observed.profile.scope)))
    slices = [event for event in trace["traceEvents"] if event["ph"] == "X"]
    return {"profile": to_json(observed.profile), "summary": summary(observed.profile)} | {
        "slices": len(slices),
        "names": sorted({event["name"] for event in slices}),
        "took_s": time.monotonic() - begin,
    }


def main() -> None:
    """Run with no capabilities but those of the observer's unit."""
    if sys.argv[1:] != ["bare"]:
        os.execvp(BARE[0], [*BARE, sys.executable, __file__, "bare"])
    seen = {"agreement": agreement()}
    clock = ping_pong()
    try:
        seen |= {"observed": profile(clock), "clock": clock}
    finally:
        os.kill(clock, signal.SIGKILL)
        os.waitpid(clock, 0)
    sys.stdout.write("\n" + json.dumps(seen) + "\n")


if __name__ == "__main__":
    main()
