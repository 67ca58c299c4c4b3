"""Rules about what the object declares: 12, 13, 15, 16 and 26."""

from __future__ import annotations

from schedagent.core.verification import Severity
from verifier.logic.rules.subject import FLAT_IDLE, IDLE_KFUNCS, Subject
from verifier.logic.walk import calls
from verifier.logic.walk.events import Event, place_of
from verifier.logic.walk.marking import KICKS
from verifier.logic.walk.terms import TermKind, inside

TIMEOUT_MAX_MS = 5000
_MOST_NAMED = 8
"""Further places of one fault that its finding names."""


def check(subject: Subject) -> None:
    """Report what breaks rules 12, 13, 15, 16 and 26."""
    _check_idle_tracking(subject)
    _check_last_task(subject)
    for member, name in subject.ops.callbacks.items():
        function = subject.image.functions.get(name)
        if function is not None and function.section.startswith("struct_ops.s/") and member not in calls.MAY_SLEEP:
            text = f"{function.name} is in section {function.section}, but {member} must not sleep"
            subject.report(16, Severity.ERROR, member, subject.start_of(member), text)
    _check_ops(subject)


# --- rules 12, 13 and 15


def _check_idle_tracking(subject: Subject) -> None:
    if "update_idle" in subject.ops.callbacks and not subject.flag("SCX_OPS_KEEP_BUILTIN_IDLE"):
        needs = "needs the built-in idle tracking, which update_idle without SCX_OPS_KEEP_BUILTIN_IDLE turns off"
        _report_calls(subject, 12, list(subject.events(*IDLE_KFUNCS)), needs)
        if "select_cpu" not in subject.ops.callbacks:
            subject.report(12, Severity.ERROR, "update_idle", subject.start_of("update_idle"),
                           "update_idle without SCX_OPS_KEEP_BUILTIN_IDLE needs an own select_cpu")  # fmt: skip
    per_node = subject.flag("SCX_OPS_BUILTIN_IDLE_PER_NODE")
    kfuncs = subject.events(*FLAT_IDLE, *(f"{name}_node" for name in FLAT_IDLE))
    refused = [event for event in kfuncs if event.name.endswith("_node") != per_node]
    _report_calls(subject, 13, refused, f"is refused {'with' if per_node else 'without'} SCX_OPS_BUILTIN_IDLE_PER_NODE")


def _report_calls(subject: Subject, rule: int, events: list[Event], fault: str) -> None:
    """Report calls that a flag forbids as the one fault that they are, at the first of them; it names the others."""
    if not events:
        return
    at_first = place_of(events[0].line)[0]
    places: dict[tuple[str, int], str] = {}
    for event in events:
        file, row, _wrapper = place_of(event.line)
        place = f"line {row}" if file == at_first else f"{file}:{row}"
        places.setdefault((file, row), f"{event.raw}() in {event.member} ({place})")
    others = list(places.values())[1:]
    more = f", and {len(others) - _MOST_NAMED} more" if len(others) > _MOST_NAMED else ""
    also = f"; the same holds for {', '.join(others[:_MOST_NAMED])}{more}" if others else ""
    subject.error(rule, events[0], f"{events[0].raw}() {fault}{also}")


def _check_last_task(subject: Subject) -> None:
    if not subject.flag("SCX_OPS_ENQ_LAST"):
        return
    if "enqueue" not in subject.ops.callbacks:
        subject.report(15, Severity.ERROR, "", None, "SCX_OPS_ENQ_LAST is set, but there is no enqueue")
        return
    last = subject.enums.get("SCX_ENQ_LAST", 1 << 41)
    for comparison in subject.walk.comparisons:
        for side in comparison.condition[2:]:
            masks = [t.parts[2] for t in inside(side) if t.kind is TermKind.OP and t.parts[0] == "and"]
            if comparison.member == "enqueue" and any(mask.is_const and mask.value & last for mask in masks):
                return
    kicked_elsewhere = any(event.member != "enqueue" for event in subject.events(*KICKS))
    for path in subject.exits("enqueue"):
        if path.marks.waits and not path.marks.kicked and not path.marks.ended:
            text = "SCX_OPS_ENQ_LAST is set, but enqueue never asks for SCX_ENQ_LAST and leaves the last task of a CPU"
            if kicked_elsewhere:
                subject.warning(15, path, f"{text} in a DSQ: the CPU idles until it is kicked", "work conservation")
            else:
                subject.error(15, path, f"{text} in a DSQ: the CPU then idles, and nothing makes it look")
            return


# --- rule 26


def _check_ops(subject: Subject) -> None:
    timeout = subject.ops.numbers.get("timeout_ms", 0)
    if timeout == 0:
        text = "timeout_ms is not set, so a lost task waits for 30 s; set .timeout_ms = 5000"
        subject.report(26, Severity.ERROR, subject.ops.name, None, text)
    elif timeout > TIMEOUT_MAX_MS:
        text = f"timeout_ms is {timeout}; set .timeout_ms to at most {TIMEOUT_MAX_MS}"
        subject.report(26, Severity.ERROR, subject.ops.name, None, text)
    if "exit" not in subject.ops.callbacks:
        text = "there is no exit callback: nobody learns why the policy ended; record struct scx_exit_info in .exit"
        subject.report(26, Severity.ERROR, subject.ops.name, None, text)
    elif not any(name.startswith(("scx_exit_info.", "info.")) for name in subject.walk.fields):
        text = "exit looks at nothing of struct scx_exit_info: nobody learns why the policy ended"
        subject.report(26, Severity.ERROR, "exit", subject.start_of("exit"), text)
