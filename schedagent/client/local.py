"""What the kernel runs, for who finds no schedagentd to ask: the same facts, from sysfs and /proc."""

from __future__ import annotations

from typing import Any

from kernel_bpf.load.running import running_release
from kernel_bpf.load.sched_ext import kernel_state
from kernel_bpf.observe.schedulers import other_schedulers, stop_hint
from schedagent.core.terminal.answers import plain


def local_status() -> dict[str, Any]:
    """Return what schedagentd would answer to `status` of the kernel and of schedulers that others have loaded."""
    state = kernel_state()
    others = list(other_schedulers()) if state.ops else []
    status: dict[str, Any] = {
        "schedagentd": "not running",
        "in_charge": state.ops or "the default scheduler",
        "foreign": {"schedulers": list(map(str, others)), "hint": stop_hint(others)} if state.ops else None,
        "kernel": {
            "release": running_release(),
            "sched_ext": state.available,
            "state": state.state,
            "ops": state.ops,
            "switch_all": state.switch_all,
            "nr_rejected": state.nr_rejected,
            "enable_seq": state.enable_seq,
            "events": state.events,
        },
    }
    return {name: plain(value) for name, value in status.items()}
