"""Single switches as a Chrome trace, which ui.perfetto.dev and chrome://tracing open (the "Trace Event Format")."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence

from kernel_bpf.observe.sched_probe import Switch
from schedagent.observing.commands import name

_CPUS = 1
"""The one track: what each CPU runs."""


def chrome_trace(switches: Sequence[Switch], more: int, scope: str) -> Iterator[str]:
    """Yield the text of a trace file, in parts: a slice for each time that a task was on a CPU.

    Args:
        more: how many switches came after the last one that was kept.
    """
    about = {"scope": scope, "switches": len(switches), "switches_not_kept": more}
    yield f'{{"otherData": {json.dumps(about)}, "displayTimeUnit": "ms", "traceEvents": [\n'
    yield ",\n".join(json.dumps(event) for event in _names(switches))
    for event in _slices(switches):
        yield f",\n{json.dumps(event)}"
    yield "\n]}\n"


def _names(switches: Sequence[Switch]) -> Iterator[dict[str, object]]:
    yield {"ph": "M", "pid": _CPUS, "name": "process_name", "args": {"name": "CPUs"}}
    for cpu in sorted({switch.cpu for switch in switches}):
        yield {"ph": "M", "pid": _CPUS, "tid": cpu, "name": "thread_name", "args": {"name": f"CPU {cpu}"}}


def _slices(switches: Sequence[Switch]) -> Iterator[dict[str, object]]:
    """A slice lasts until the next switch on its CPU; of the last one on each CPU nobody knows the end."""
    ordered = sorted(switches, key=lambda switch: switch.at_ns)
    begin_ns = ordered[0].at_ns if ordered else 0
    running: dict[int, Switch] = {}
    for switch in ordered:
        before = running.get(switch.cpu)
        if before is not None and before.tid:
            yield {
                "ph": "X",
                "pid": _CPUS,
                "tid": before.cpu,
                "name": name(before.comm),
                "ts": (before.at_ns - begin_ns) / 1000,
                "dur": (switch.at_ns - before.at_ns) / 1000,
                "args": {
                    "thread": before.tid,
                    "process": before.tgid,
                    "waited_us": before.waited_ns / 1000,
                    "left": "sleeping" if switch.previous_state else "runnable",
                },
            }
        running[switch.cpu] = switch
