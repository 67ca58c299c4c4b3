"""Rules about DSQs: 2 (created), 3, 4 (order), 7 (whose index), 8 (moves), 19 (drained), 20 (kicks), 29 (priority)."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from schedagent.core.policies.policy import Standing
from schedagent.core.rules import FindingClass
from schedagent.core.verification import Severity
from verifier.logic.rules.bounds import COUNTED_CPUS
from verifier.logic.rules.placement import allowed, may_use_all
from verifier.logic.rules.queues import Queue, QueueKind, is_cpu, may_be, must_be
from verifier.logic.rules.subject import Drain, Insert, Subject, calls_any
from verifier.logic.walk.calls import names
from verifier.logic.walk.events import Event, Exit
from verifier.logic.walk.facts import Condition, Facts, Range, range_of
from verifier.logic.walk.marking import unanswered_claims
from verifier.logic.walk.terms import Term, TermKind, describe, inside, is_callback_task, linear, low_half

_FETCHES = names("scx_bpf_reenqueue_local scx_bpf_dsq_reenq")
_SHOWS_EJECTION = "starvation"
"""The kernel ejects a policy that does what only some members of a family, or of the values that were joined, would be.
What a person brings may have a reason why they never are: a run shows it."""

_ZERO_HINT = "an SCX_* number that became 0? take it with bpf_core_enum_value()"


def check(subject: Subject) -> None:
    """Report what breaks rules 2, 3, 4, 7 (families), 8, 19, 20 and 29 (strict priority)."""
    inserts, drains = list(subject.inserts()), list(subject.drains())
    created = list(_created(subject))
    for insert in inserts:
        _check_target(subject, insert, [queue for _event, queue in created])
    for drain in drains:
        _check_source(subject, drain, [queue for _event, queue in created])
    for event, queue in created:
        if queue.kind is not QueueKind.USER and queue.kind is not QueueKind.OPAQUE:
            subject.error(2, event, f"scx_bpf_create_dsq() is given {queue}; ids with bit 63 belong to the kernel")
    _check_every_success(subject, inserts)
    _check_orders(subject, inserts)
    _check_drained(subject, inserts, drains)
    _check_indexes(subject, inserts, drains)
    _check_kicks(subject, drains)
    _check_priority(subject, inserts, drains)
    _check_release(subject, inserts)


def _created(subject: Subject) -> Iterator[tuple[Event, Queue]]:
    for event in subject.events("scx_bpf_create_dsq"):
        for queue in subject.queues(event.arguments[0], event.facts):
            yield event, queue


# --- rules 2, 3 and 8


def _check_target(subject: Subject, insert: Insert, created: list[Queue]) -> None:
    queue, event = insert.queue, insert.event
    if queue.builtin:
        if insert.vtime is not None:
            subject.error(3, event, f"{event.raw}() puts a task by vtime into {queue}, which is FIFO only")
    elif queue.kind is QueueKind.BAD:
        subject.error(2, event, f"{queue} has bit 63 set but is no built-in DSQ that tasks may be inserted into")
    elif not subject.is_seen("init"):
        return
    elif queue.kind is QueueKind.USER and not any(may_be(queue, other) for other in created):
        hint = f" ({_ZERO_HINT})" if queue.single and queue.constant == 0 else ""
        text = f"{queue} is inserted into, but init never creates it{hint}"
        if subject.standing is Standing.FOREIGN and queue.joined:
            subject.warning(2, event, text, _SHOWS_EJECTION)
        else:
            subject.error(2, event, text)
    elif queue.kind is QueueKind.OPAQUE and not created:
        subject.error(2, event, "a DSQ is inserted into, but init creates none")


def _check_source(subject: Subject, drain: Drain, created: list[Queue]) -> None:
    queue, event = drain.queue, drain.event
    if queue.builtin or queue.kind is QueueKind.BAD:
        if event.name == "scx_bpf_dsq_move_to_local":
            subject.error(8, event, f"{event.raw}() is given {queue}; the kernel serves built-in DSQs by itself")
    elif not subject.is_seen("init") or _names_no_cpu(event.facts):
        return  # the latter is what a table of CPUs holds behind its end
    elif queue.kind is QueueKind.USER and not any(may_be(queue, other) for other in created):
        subject.error(8, event, f"{event.raw}() is given {queue}, which init never creates")


def _names_no_cpu(facts: Facts) -> bool:
    """Whether a path is only taken by a CPU beyond those that are counted for: the other side of `cpu < MAX_CPUS`."""
    for key, known in facts.items():
        if isinstance(key, Condition) or not isinstance(known, Range):
            continue
        constant, addends = linear(low_half(key[1]))
        if len(addends) == 1 and _dispatching(addends[0][0]):
            last = constant + addends[0][1] * (COUNTED_CPUS - 1)
            if last < known.low:
                return True
    return False


def _check_every_success(subject: Subject, inserts: list[Insert]) -> None:
    """A DSQ that is created on some paths of a successful init only."""
    succeeded = [path for path in subject.exits("init") if range_of(path.facts, 32, low_half(path.result)).low == 0]
    ever = frozenset().union(*(path.marks.created for path in succeeded)) if succeeded else frozenset()
    for path in succeeded:
        if path.marks.ended:
            continue
        for missing in sorted(ever - path.marks.created):
            if any(insert.queue.single and insert.queue.constant == missing for insert in inserts):
                subject.warning(2, path, f"init may succeed without creating DSQ {missing}, which is inserted into",
                                "starvation")  # fmt: skip


# --- rule 4


def _check_orders(subject: Subject, inserts: list[Insert]) -> None:
    fifo = [insert for insert in inserts if insert.vtime is None and not insert.queue.builtin]
    timed = [insert for insert in inserts if insert.vtime is not None and not insert.queue.builtin]
    for untimed in fifo:
        for other in timed:
            if must_be(untimed.queue, other.queue) or untimed.queue.term is other.queue.term:
                line = other.event.line.line if other.event.line else 0
                text = f"{untimed.queue} is inserted into in FIFO order here and by vtime in {other.event.member} "
                text += f"(line {line})"
                if subject.standing is Standing.FOREIGN and (untimed.queue.joined or not untimed.queue.single):
                    subject.warning(4, untimed.event, text, _SHOWS_EJECTION)
                else:
                    subject.error(4, untimed.event, text)
                break


# --- rule 19


def _check_drained(subject: Subject, inserts: list[Insert], drains: list[Drain]) -> None:
    for insert in inserts:
        if insert.queue.builtin or insert.queue.kind is QueueKind.BAD or not subject.is_seen("dispatch"):
            continue
        drained_by = [drain for drain in drains if may_be(insert.queue, drain.queue)]
        problem = _why_not_drained(insert, drained_by)
        if problem:
            subject.error(19, insert.event, f"tasks wait in {insert.queue}, but {problem}")
        elif drained_by:
            _check_everywhere(subject, insert, drained_by)


def _why_not_drained(insert: Insert, drains: list[Drain]) -> str:
    queue = insert.queue
    if not drains:
        return "nothing ever moves them out of it"
    first = drains[0].queue
    if queue.single and all(_of_one_cpu(drain.queue) for drain in drains) and not may_use_all(insert.event.facts):
        return f"dispatch only looks at {first}, which is this DSQ on one CPU alone"
    if queue.family and {(drain.queue.single, drain.queue.constant) for drain in drains} == {(True, first.constant)}:
        return f"only {first} of them is ever looked at"
    return ""


def _of_one_cpu(queue: Queue) -> bool:
    """Whether an id is `base + the CPU that dispatches`."""
    return queue.family and len(queue.addends) == 1 and queue.addends[0][1] == 1 and _dispatching(queue.addends[0][0])


def _dispatching(term: Term) -> bool:
    term = low_half(term)
    if term.kind is TermKind.PURE and term.name == "bpf_get_smp_processor_id":
        return True
    return term.kind is TermKind.ARGUMENT and term.parts[1] == "cpu"


def _check_everywhere(subject: Subject, insert: Insert, drains: list[Drain]) -> None:
    """Whether every way to drain a DSQ depends on the number of the dispatching CPU."""
    restrictions = [_restriction(drain.event.facts) for drain in drains]
    if not all(restrictions):
        return
    if len(set(restrictions)) > 1 and any(text.startswith("not ") for text in restrictions):
        return
    if {_known_cpu(insert.event.facts, _is_cpu_of(insert.task))} & {_known_cpu(drain.event.facts, _dispatching)
                                                                   for drain in drains} - {None}:  # fmt: skip
        return  # the task is on the CPU that looks there
    line = drains[0].event.line
    subject.error(19, insert.event, f"{insert.queue} is not always drained: line {line.line if line else 0} is only "
                                    f"reached where {restrictions[0]}")  # fmt: skip


def _is_cpu_of(task: Term) -> Callable[[Term], bool]:
    def is_cpu_of(term: Term) -> bool:
        term = low_half(term)
        return term.kind is TermKind.PURE and term.name == "scx_bpf_task_cpu" and term.parts[1] == (task,)

    return is_cpu_of


def _known_cpu(facts: Facts, is_wanted: Callable[[Term], bool]) -> int | None:
    """Return the number that a path knows a CPU by, None if it knows none."""
    for key, known in facts.items():
        if isinstance(key, Condition):
            if key.operator == "eq" and known is True and key.right.is_const and is_wanted(key.left):
                return key.right.value
        elif isinstance(known, Range) and known.low == known.high and is_wanted(key[1]):
            return known.low
    return None


def _admits_all(key: Condition, known: object) -> bool:
    """Whether a comparison only leaves out CPUs beyond those that are counted for: if (cpu >= MAX_CPUS) return."""
    if key.operator == "eq" or not isinstance(known, bool):
        return False
    if known:
        return key.right.is_const and _dispatching(key.left) and key.right.value >= COUNTED_CPUS
    return key.left.is_const and _dispatching(key.right) and key.left.value >= COUNTED_CPUS - 1


def _restriction(facts: Facts) -> str:
    """Return what a path requires of the dispatching CPU's number, "" if nothing."""
    for key, known in facts.items():
        if isinstance(key, Condition):
            if key.operator == "eq" and key.right.is_const and _is_prev(key.left) and key.right.value == 0 and known:
                return "prev is NULL"
            if _admits_all(key, known):
                continue
            about = [t for side in (key.left, key.right) for t in inside(side) if _dispatching(t)]
            others = [t for side in (key.left, key.right) for t in (side,) if not t.is_const and not _mentions_cpu(t)]
            if about and not others and not _calls_inside(key):
                return ("" if known else "not ") + f"{describe(key.left)} {_SIGN[key.operator]} {describe(key.right)}"
        elif isinstance(known, Range) and _dispatching(key[1]) and key[0] == 32 and known.high < COUNTED_CPUS - 1:
            return f"{describe(key[1])} <= {known.high}"
    return ""


_SIGN = {"eq": "==", "ult": "<", "slt": "<"}


def _is_prev(term: Term) -> bool:
    return term.kind is TermKind.ARGUMENT and term.parts[1] == "prev"


def _mentions_cpu(term: Term) -> bool:
    return any(_dispatching(part) for part in inside(term))


def _calls_inside(key: Condition) -> bool:
    return any(t.kind in (TermKind.CALL, TermKind.LOAD, TermKind.PURE) and not _dispatching(t)
               for side in (key.left, key.right) for t in inside(side))  # fmt: skip


# --- rule 7


def _check_indexes(subject: Subject, inserts: list[Insert], drains: list[Drain]) -> None:
    """A family of per-CPU DSQs that only its CPU drains: the task must be allowed to use that CPU."""
    for insert in inserts:
        queue = insert.queue
        if queue.joined or not queue.family or len(queue.addends) != 1 or not is_callback_task(insert.task):
            continue
        drained_by = [drain for drain in drains if may_be(queue, drain.queue)]
        if not drained_by or not all(_of_one_cpu(drain.queue) for drain in drained_by):
            continue
        index = low_half(queue.addends[0][0])
        if _index_is_allowed(subject, insert, index):
            continue
        where = f"the task waits in {queue}, which only CPU {describe(index)} drains"
        if index.kind is TermKind.LOAD:
            subject.warning(
                7, insert.event, f"{where}, and nothing here tests that the task may use that CPU", "affinity"
            )
        else:
            subject.error(7, insert.event, f"{where}, without a test that the task may use that CPU")


def _index_is_allowed(subject: Subject, insert: Insert, index: Term) -> bool:
    if index.kind is TermKind.ARGUMENT and index.parts[1] == "prev_cpu":
        return True
    if index.kind is TermKind.FIELD and ("cpu" in index.name):
        return True
    if not is_cpu(index) and index.kind not in (
        TermKind.OP,
        TermKind.PURE,
        TermKind.LOAD,
        TermKind.INDEX,
        TermKind.LINEAR,
    ):
        return True
    return allowed(subject, insert.event.facts, index, insert.task)


# --- rule 20


def _check_kicks(subject: Subject, drains: list[Drain]) -> None:
    """A task that enqueue leaves waiting while CPUs may idle: one of them must be kicked.

    select_cpu finds an idle CPU for a task that wakes, but enqueue is also called for tasks that were preempted, whose
    mask or class changed, and after the last idle CPU was missed by a moment.
    """
    for path in subject.exits("enqueue"):
        marks = path.marks
        if marks.waits and not marks.kicked and not marks.sought and not marks.ended:
            text = "enqueue leaves the task in a DSQ on this path without looking for an idle CPU and without a kick"
            subject.warning(20, path, text, "work conservation")
            break
        if marks.waits and marks.missed and not marks.kicked and not marks.last and not marks.ended:
            text = "enqueue looks for an idle CPU before it leaves the task in a DSQ, and not after"
            text += ": one that falls idle in between sleeps on"
            subject.report(20, Severity.NOTE, path.member, path.line, text, trail=path.trail)
    for path in subject.exits("enqueue"):
        if not path.marks.ended and not _is_pinned(path.facts):
            _check_claims(subject, path)
            _check_kicked(subject, path, drains)
    for path in subject.exits("select_cpu"):
        if not path.marks.ended:
            _check_claim_is_returned(subject, path)


def _check_claims(subject: Subject, path: Exit) -> None:
    """Whether enqueue uses the idle CPU that it claimed: nobody else finds it idle until it has run."""
    marks = path.marks
    unused = bool(unanswered_claims(marks)) or any(not claim.inserted and not claim.kicked for claim in marks.claims)
    if unused and not marks.kicked and (marks.waits or marks.stores):
        text = "enqueue claims an idle CPU for the task it leaves waiting, and never kicks it"
        subject.error(20, path, f"{text}: until it runs for another reason nobody finds it idle")
    elif unused and not marks.kicked and marks.stays:
        text = "enqueue claims an idle CPU and inserts the task into SCX_DSQ_LOCAL, the queue of the CPU that it is on"
        subject.error(20, path, f"{text}: the claimed one idles; insert into SCX_DSQ_LOCAL_ON | cpu")
    elif marks.stays and any(claim.kicked and not claim.inserted for claim in marks.claims):
        text = "enqueue claims an idle CPU and kicks it, but inserts the task into SCX_DSQ_LOCAL, where the kicked one"
        subject.warning(20, path, f"{text} cannot fetch it; insert into SCX_DSQ_LOCAL_ON | cpu", "work conservation")
    elif not marks.kicked and any(claim.inserted and not claim.kicked for claim in marks.claims):
        text = "enqueue sends the task to the local DSQ of an idle CPU and does not kick it: the kernel has to wake it"
        subject.report(20, Severity.NOTE, path.member, path.line, text, trail=path.trail)  # as kernels since 6.12 do


def _check_kicked(subject: Subject, path: Exit, drains: list[Drain]) -> None:
    """Whether the CPU that is kicked is the one that looks where the task waits, if only one CPU does."""
    marks = path.marks
    for queue in subject.queues(marks.queue, path.facts) if marks.queue is not None and marks.kicks else ():
        looks = [drain for drain in drains if may_be(queue, drain.queue)]
        if queue.joined or len(queue.addends) != 1 or not looks or not all(_of_one_cpu(each.queue) for each in looks):
            continue
        index = low_half(queue.addends[0][0])
        if not any(cpu is index or TermKind.UNKNOWN in (cpu.kind, index.kind) for cpu in marks.kicks):
            text = f"the task waits in {queue}, which only CPU {describe(index)} drains, and another CPU is kicked"
            subject.warning(20, path, text, "work conservation")


def _is_pinned(facts: Facts) -> bool:
    """Whether the path knows that the task may use one CPU only, which is the one that it is on."""
    return any(
        not isinstance(key, Condition) and key[1].kind is TermKind.FIELD
        and key[1].name == "task_struct.nr_cpus_allowed" and isinstance(known, Range) and known.high == 1
        for key, known in facts.items()
    )  # fmt: skip


def _check_claim_is_returned(subject: Subject, path: Exit) -> None:
    """Whether select_cpu sends the task to the idle CPU that it claimed."""
    answer = low_half(path.result)
    unused = unanswered_claims(path.marks) | {
        claim.cpu for claim in path.marks.claims if not claim.inserted and not claim.kicked
    }
    for cpu in unused - {answer} if answer.kind is not TermKind.UNKNOWN else ():
        text = f"select_cpu claims {describe(cpu)} and returns {describe(answer)}"
        text += ": nobody finds the claimed CPU idle until it has run"
        subject.warning(20, path, text, "work conservation")


# --- rule 29


def _check_priority(subject: Subject, inserts: list[Insert], drains: list[Drain]) -> None:
    """A DSQ that is only looked at when another one gave nothing: whoever fills that one keeps this one waiting."""
    entered = {insert.queue.term: insert.queue for insert in inserts if insert.queue.kind is QueueKind.USER}
    for queue in entered.values():
        looks = [drain.event for drain in drains if may_be(queue, drain.queue)]
        if not looks or any(event.member != "dispatch" for event in looks):
            continue
        emptied = frozenset.intersection(*(event.marks.emptied for event in looks))
        others = (other for other in entered.values() if other.single and not may_be(queue, other))
        first = next((other for other in others if other.constant in emptied), None)
        if first is not None:
            text = f"dispatch looks at {queue} only when it got nothing from {first}: as long as tasks come there, "
            subject.report(29, Severity.WARNING, "dispatch", looks[0].line, f"{text}those here wait",
                           trail=looks[0].trail, cleared_by="starvation", classed=FindingClass.UNFAIR)  # fmt: skip


def _check_release(subject: Subject, inserts: list[Insert]) -> None:
    """Whether tasks come back from the local DSQ of a CPU that a higher scheduling class takes away.

    Only the policy can fetch them: scx_bpf_reenqueue_local() of kernel/sched/ext.c. A policy without a cpu_release
    leaves them there, too, but does not say that it thought of it.
    """
    local = any(insert.queue.kind in (QueueKind.LOCAL, QueueKind.LOCAL_ON) for insert in inserts)
    release = subject.ops.callbacks.get("cpu_release", "")
    if release and local and not calls_any(subject.image, release, _FETCHES):
        text = (
            "cpu_release leaves the tasks in the local DSQ of a CPU that is taken away, where no other CPU finds them"
        )
        subject.report(29, Severity.WARNING, "cpu_release", subject.start_of("cpu_release"), text,
                       cleared_by="real-time interference", classed=FindingClass.UNFAIR)  # fmt: skip
