"""Which rule a policy broke, by the words with which the kernel ended or refused it.

Source: the messages of scx_error() in kernel/sched/ext.c and ext_idle.c, and of the kernel's verifier
(kernel/bpf/verifier.c). They are no interface: words that are not known name no rule, and the text is shown as it is.
"""

from __future__ import annotations

from schedagent.core.rules import RULES
from schedagent.core.verification import Finding, Severity

_STALL = 29
"""What the watchdog reports is the oracle "starvation", measured by the kernel: a task did not run for too long."""

_EJECTIONS = (
    ("target CPU", 6),
    ("not allowed for", 6),
    ("invalid CPU", 1),
    ("invalid cpu", 1),
    ("non-existent DSQ", 2),
    ("invalid DSQ ID", 2),
    ("cannot use vtime ordering for built-in DSQs", 3),
    ("already had FIFO-enqueued tasks", 4),
    ("already had PRIQ-enqueued tasks", 4),
    ("already direct-dispatched", 5),
    ("dispatch buffer overflow", 9),
    ("PREEMPT/WAIT cannot be used with SCX_KICK_IDLE", 10),
    ("cpuperf target", 11),
    ("built-in idle tracking is disabled", 12),
    ("per-node idle tracking", 13),
    ("called on a task not being operated on", 14),
    ("SCX_OPS_ENQ_LAST requires ops.enqueue()", 15),
    ("ops.init_task() failed", 17),
    ("init_task failed", 17),
    ("runnable task stall", _STALL),
    ("watchdog failed to check in", _STALL),
    ("failed to run for", _STALL),
)

_REFUSALS = (
    ("sleepable", 16),
    ("is not supported in non-sleepable", 16),
    ("not allowed in non-sleepable", 16),
    ("infinite loop detected", 28),
    ("BPF program is too large", 28),
    ("The sequence of", 28),
    ("unknown func", 27),
    ("program of this type cannot use helper", 27),
    ("calling kernel function", 27),
)


def rule_of_exit(text: str) -> int:
    """Return the number of the rule that an exit message speaks of, 0 if it names none."""
    return _find(text, _EJECTIONS)


def rule_of_refusal(log: str) -> int:
    """Return the number of the rule that a refusal of the kernel's verifier speaks of, 0 if it names none."""
    return _find(log, _REFUSALS) or _find(log, _EJECTIONS)


def finding(rule: int, message: str) -> tuple[Finding, ...]:
    """Return the finding for a rule found by its words; none for rule 0."""
    where = "starvation" if rule == _STALL else ""
    return (Finding(rule, Severity.ERROR, where, "", 0, message),) if rule in RULES else ()


def _find(text: str, words: tuple[tuple[str, int], ...]) -> int:
    return next((rule for phrase, rule in words if phrase in text), 0)
