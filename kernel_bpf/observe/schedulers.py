"""Sched_ext schedulers of others: the processes that may have loaded what the kernel runs, and how to stop them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from kernel_bpf.observe import tasks
from schedagent.core.terminal.foreign import one_line, quote


@dataclass(frozen=True)
class Scheduler:
    """A process that may have loaded a sched_ext policy.

    Args:
        name: its command.
        unit: the systemd service it belongs to; empty for none.
    """

    name: str
    pid: int
    unit: str = ""

    def __str__(self) -> str:
        return f"{quote(self.name)}, process {self.pid}{f' of {self.unit}' if self.unit else ''}"


def other_schedulers() -> Iterator[Scheduler]:
    """Find processes whose command begins with scx_, as those of the scx project do, and the unit they belong to.

    Anybody may call a process that. So root's count only, for nobody else's could load anything; and a unit only within
    system.slice, where nobody but systemd makes one: people are advised to stop it.
    """
    for process in tasks.processes():
        folder = tasks.PROC / str(process)
        try:
            owner = folder.stat().st_uid
            name = (folder / "comm").read_text(errors="replace").strip()
            group = (folder / "cgroup").read_text(errors="replace")
        except OSError:
            continue
        if name.startswith("scx_") and owner == 0:
            unit = _UNIT.search(group)
            yield Scheduler(one_line(name), process, unit.group(1) if unit else "")


_UNIT = re.compile(
    r"^\d+:[^:]*:/system\.slice/(?:[^/\n]+\.slice/)*([\w:.@-]+\.service)(?:/|$)", re.MULTILINE | re.ASCII
)


def named(schedulers: Sequence[Scheduler]) -> str:
    """Schedulers in words, in parentheses; nothing if there are none."""
    return f" ({', '.join(map(str, schedulers))})" if schedulers else ""


def stop_hint(schedulers: Sequence[Scheduler]) -> str:
    """What to do about another scheduler, given who may have loaded it."""
    units = sorted({scheduler.unit for scheduler in schedulers if scheduler.unit})
    if units:
        return f"systemctl disable --now {' '.join(units)}"
    if schedulers:
        return f"stop {', '.join(map(str, schedulers))}"
    return "stop whoever loaded it (scx.service and scx_loader.service are the usual ones)"
