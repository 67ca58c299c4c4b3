"""The scheduling-logic checks on a compiled policy: SCHED_EXT's rules, decided along the paths of its programs.

The kernel's verifier proves memory safety; this shows whether a path loses a task, a DSQ is never drained, a CPU is
named that need not exist. Every finding names its rule, source line and the steps of a path. How the paths are found is
in `verifier.logic`.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from types import MappingProxyType

from schedagent.core.policies.policy import Standing
from schedagent.core.verification import Finding, Severity
from verifier.logic.lacks import hands_over, unfilled_maps
from verifier.logic.rules import allowed as allowed_rules
from verifier.logic.rules import declared as declared_rules
from verifier.logic.rules import limits as limit_rules
from verifier.logic.rules import memory as memory_rules
from verifier.logic.rules import placement as placement_rules
from verifier.logic.rules import queue as queue_rules
from verifier.logic.rules import reads as read_rules
from verifier.logic.rules import task as task_rules
from verifier.logic.rules import time as time_rules
from verifier.logic.rules import work as work_rules
from verifier.logic.rules.bounds import Bounds, read_variables
from verifier.logic.rules.subject import Subject
from verifier.logic.taint import limits
from verifier.logic.taint import rule as taint_rule
from verifier.logic.taint.limits import LimitsCode
from verifier.logic.walk import calls
from verifier.logic.walk.events import Walk
from verifier.logic.walk.flow import Walker
from verifier.object.image import BpfImage, OpsStruct

_CID_OPS = "sched_ext_ops_cid"
_ORDER = ("init", "exit", "init_task", "enqueue", "select_cpu", "dispatch")


@dataclass(frozen=True)
class CallbackWalk:
    """How far one entry was explored.

    Args:
        member: the callback, or the name of another program or a timer's callback.
        paths, steps: paths followed and instructions looked at.
        joined: whether so many paths met that some were joined and details lost.
        exhausted: whether the budget ran out.
    """

    member: str
    paths: int
    steps: int
    joined: bool
    exhausted: bool


@dataclass(frozen=True)
class LogicReport:
    """What the logic checks found.

    Args:
        findings: errors first, notes last.
        callbacks: one entry per walked callback or program.
        dsqs_created, dsqs_drained: distinct DSQs, or families of them, that are created and drained.
        unfilled: maps that are looked at, and that no program of the object writes to.
        handed_over: whether tasks are handed to a program in user space.
        limits: kinds of limits of cgroups that it has callbacks for, in the words of rule 31.
        kept: functions of our headers that were taken as a whole.
    """

    findings: tuple[Finding, ...]
    callbacks: tuple[CallbackWalk, ...]
    dsqs_created: int
    dsqs_drained: int
    unfilled: tuple[str, ...] = ()
    handed_over: bool = False
    limits: tuple[str, ...] = ()
    kept: frozenset[str] = frozenset()

    @property
    def errors(self) -> tuple[Finding, ...]:
        return tuple(finding for finding in self.findings if finding.severity is Severity.ERROR)

    @property
    def summary(self) -> str:
        """One line for people."""
        paths = sum(walk.paths for walk in self.callbacks)
        errors, warnings, notes = (sum(each.severity is kind for each in self.findings) for kind in Severity)
        drained = "all drained" if self.dsqs_drained >= self.dsqs_created else f"{self.dsqs_drained} drained"
        queues = f"{self.dsqs_created} DSQs or families created, {drained}" if self.dsqs_created else "no DSQs created"
        noted = f", {notes} notes" if notes else ""
        findings = f"{errors} errors, {warnings} warnings{noted}" if self.findings else "nothing found"
        return f"{len(self.callbacks)} callbacks, {paths} paths, {queues}; {findings}"


def _kept(image: BpfImage, accepted_limits: Callable[[], LimitsCode]) -> frozenset[str]:
    """The functions of our headers that are taken as a whole."""
    return limits.kept_functions(image, accepted_limits()) if limits.uses_limits(image) else frozenset()


def check_logic(
    image: BpfImage,
    features: frozenset[str],
    enums: Mapping[str, int] = MappingProxyType({}),
    tunables: Mapping[str, int] = MappingProxyType({}),
    *,
    standing: Standing = Standing.DERIVED,
    reads: Collection[str] = (),
    accepted_reader: Callable[[], str] = str,
    accepted_limits: Callable[[], LimitsCode] = LimitsCode,
) -> LogicReport:
    """Check a compiled policy against the rules that its programs show.

    Args:
        image: the object, from `verifier.object.reader.read_object`.
        features: kernel_bpf.build.target.features of the target; empty: everything is assumed to exist.
        enums: values of the target's enumerators, as kernel_bpf.build.target.enum_values gives them ("SCX_DSQ_LOCAL";
            with the type before a dot is fine, too); the object's own fill the gaps.
        tunables: values that the loader will set; the others are judged by what the object holds.
        standing: where the policy comes from: what is an error of a derived one may be a note on a foreign one.
        accepted_reader: returns the program that may read arguments of tasks, as `rules.reads.reader` describes it, ""
            if none may; asked only if one does.
        accepted_limits: returns the code of our headers that keeps limits of cgroups; asked only if the object has any.
        reads: the inputs that it declares to go by, of core.policies.policy.READABLE.
    """
    if not image.ops:
        return _no_scheduler(image)
    with _without_collections():
        return _checked(
            _configured(image, tunables), features, enums, standing, reads, accepted_reader, accepted_limits
        )


@contextmanager
def _without_collections() -> Iterator[None]:
    """Let nobody look for cycles among a million terms and states of which none is garbage: a fifth of the time."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def _checked(
    image: BpfImage,
    features: frozenset[str],
    enums: Mapping[str, int],
    standing: Standing,
    reads: Collection[str],
    accepted_reader: Callable[[], str],
    accepted_limits: Callable[[], LimitsCode],
) -> LogicReport:
    known = (calls.FIXED_ENUMS, image.enums, enums)
    values = {name.rpartition(".")[2]: value for source in known for name, value in source.items()}
    ops = image.ops[0]
    kept = _kept(image, accepted_limits)
    walk = _walk(image, ops, features, values, limits.plain_functions(image, kept))
    subject = Subject(image, ops, walk, values, features, standing, frozenset(reads))
    declared_rules.check(subject)
    for rules in (placement_rules, queue_rules, task_rules):
        rules.check(subject)
    bounds = Bounds(read_variables(image, walk))
    time_rules.check(subject, bounds)
    allowed_rules.check(subject)
    memory_rules.check(subject)
    limit_rules.check(subject)
    read_rules.check(subject, bounds, accepted_reader=accepted_reader)
    work_rules.check(subject, bounds)
    subject.findings.extend(taint_rule.findings(image, standing, reads, kept))
    if limits.uses_limits(image) and not kept and standing is not Standing.BUNDLED:
        subject.findings.append(Finding(taint_rule.RULE, Severity.NOTE, "", "", 0, limits.FOLLOWED))
    _check_explored(subject, walk)
    findings = sorted(
        subject.findings, key=lambda finding: (list(Severity).index(finding.severity), finding.rule, finding.line)
    )
    return LogicReport(
        tuple(findings),
        tuple(CallbackWalk(e.member, e.paths, e.steps, e.joined, e.exhausted) for e in walk.entries),
        *_queue_counts(subject),
        unfilled_maps(image, walk),
        hands_over(image, walk),
        limit_rules.known_limits(ops),
        kept,
    )


def _configured(image: BpfImage, tunables: Mapping[str, int]) -> BpfImage:
    """Return the object as the loader will have set it."""
    variables = dict(image.variables)
    for name, value in tunables.items():
        known = variables.get(name)
        if known is not None and known.section.startswith(".rodata") and known.size <= 8:
            content = (value & ((1 << 8 * known.size) - 1)).to_bytes(known.size, "little")
            variables[name] = replace(known, content=content)
    return replace(image, variables=variables)


def _no_scheduler(image: BpfImage) -> LogicReport:
    """Say in one sentence what it is instead."""
    others = ", ".join(image.other_struct_ops)
    sections = sorted({each.section.partition("/")[0] for each in image.functions.values() if each.is_program})
    if any(name.endswith(f"({_CID_OPS})") for name in image.other_struct_ops):
        text = f"{others}: a scheduler that numbers CPUs by topology (cids); no rule here is about those yet"
    elif others:
        text = f"it is BPF, and no scheduler: it defines {others}, and no sched_ext_ops"
    else:
        text = (
            f"it is BPF, and no scheduler: it has programs of {', '.join(sections) or 'no kind'}, and no sched_ext_ops"
        )
    return LogicReport((Finding(27, Severity.ERROR, "", "", 0, text),), (), 0, 0)


def _walk(
    image: BpfImage, ops: OpsStruct, features: frozenset[str], enums: Mapping[str, int], plain: frozenset[str]
) -> Walk:
    """Walk every callback, the revealing ones first and the longest after them, then the other programs.

    What exit looks at decides about rule 26, so it must not be what is left when the budget is spent; it is short.
    What init_task makes sure of is known in the others.
    """
    walker = Walker(image, features, enums, plain)
    entered = set()
    order = sorted(ops.callbacks.items(), key=lambda item: _ORDER.index(item[0]) if item[0] in _ORDER else len(_ORDER))
    for member, name in order:
        if name in image.functions:
            walker.enter(member, image.functions[name])
            entered.add(name)
    for function in image.functions.values():
        if function.is_program and function.name not in entered:
            walker.enter(function.name, function)
    return walker.walk


def _check_explored(subject: Subject, walk: Walk) -> None:
    """A walk that was cut short proves nothing, and neither does a run: what was not looked at may wait for its day."""
    severity = Severity.NOTE if subject.standing is Standing.BUNDLED else Severity.ERROR
    for entry in walk.entries:
        if entry.unreadable:
            text = f"{entry.function} cannot be followed: {entry.unreadable}"
            subject.report(28, Severity.ERROR, entry.member, None, text)
        if entry.exhausted and entry.steps > 1:
            text = f"not every path of {entry.member} can be followed: after {entry.steps:,} steps there are more"
            subject.report(28, severity, entry.member, subject.start_of(entry.member), text)
    unseen = [entry.member for entry in walk.entries if entry.exhausted and entry.steps <= 1]
    if unseen:
        text = f"the steps of all programs were used up before {len(unseen)} of them: {', '.join(unseen)}"
        subject.report(28, severity, "", None, text)


def _queue_counts(subject: Subject) -> tuple[int, int]:
    created = {
        queue.term
        for event in subject.events("scx_bpf_create_dsq")
        for queue in subject.queues(event.arguments[0], event.facts)
    }
    drained = {drain.queue.term for drain in subject.drains()}
    return len(created), min(len(created), len(drained))
