"""Rules about the task's way: 5 (one insert), 9 (batch), 17 (init_task), 18 (no path loses the task)."""

from __future__ import annotations

from schedagent.core.rules import FindingClass
from verifier.logic.rules.subject import Subject
from verifier.logic.walk.events import Event, Exit
from verifier.logic.walk.facts import range_of
from verifier.logic.walk.marking import INSERTS
from verifier.logic.walk.terms import Term, TermKind, describe, inside, is_callback_task, low_half, signed

_DEFAULT_BATCH = 32
_MAY_INSERT = frozenset({"select_cpu", "enqueue", "dispatch"})
_SOURCES_OF_TASKS = frozenset({"bpf_task_from_pid", "bpf_task_from_vpid", "scx_bpf_tid_to_task"})
_READERS = frozenset({"bpf_map_pop_elem", "bpf_map_peek_elem", "bpf_map_lookup_elem", "bpf_for_each_map_elem",
                      "bpf_rbtree_first", "bpf_rbtree_remove", "bpf_list_pop_front", "bpf_list_pop_back",
                      "bpf_user_ringbuf_drain", "bpf_kptr_xchg", "bpf_map_lookup_percpu_elem"})  # fmt: skip
_WRITERS = frozenset({"bpf_map_push_elem", "bpf_map_update_elem", "bpf_rbtree_add", "bpf_list_push_front",
                      "bpf_list_push_back", "bpf_ringbuf_output"})  # fmt: skip


_REFUSED = {
    "init_task": "every fork",
    "cgroup_init": "every mkdir of a cgroup",
    "cgroup_prep_move": "every move to a cgroup",
}
"""What the kernel fails, for the whole machine, when a callback returns an error."""


def check(subject: Subject) -> None:
    """Report what breaks rules 5, 9, 17 and 18."""
    for event in subject.events(*INSERTS):
        _check_insert(subject, event)
    for member in _REFUSED:
        for path in subject.exits(member):
            _check_fork(subject, path)
    served = served_places(subject)
    for path in subject.exits("enqueue"):
        _check_end_of_enqueue(subject, path, served)


def _check_insert(subject: Subject, event: Event) -> None:
    member, task = event.member, event.argument(0)
    if member not in subject.ops.callbacks or task is None:
        return
    if member not in _MAY_INSERT:
        subject.error(
            5, event, f"{event.raw}() may only be called from select_cpu, enqueue and dispatch, not from {member}"
        )
    elif member == "dispatch":
        _check_batch(subject, event)
    elif is_callback_task(task):
        if event.marks.inserts:
            subject.error(5, event, f"{member} inserts the task a second time on this path")
    elif task.kind is not TermKind.UNKNOWN:
        subject.error(5, event, f"{member} inserts {describe(task)}; only its own task p may be inserted here")


def _check_batch(subject: Subject, event: Event) -> None:
    batch = subject.ops.numbers.get("dispatch_max_batch", 0) or _DEFAULT_BATCH
    if event.looped and (event.bound is None or event.bound > batch):
        times = f"up to {event.bound} times" if event.bound is not None else "without a bound that is known"
        subject.error(9, event, f"dispatch inserts in a loop {times}; dispatch_max_batch is {batch}, and "
                                "scx_bpf_dispatch_nr_slots() is not asked")  # fmt: skip
    elif len(event.marks.batch) >= batch and event.site not in event.marks.batch:
        subject.error(9, event, f"dispatch inserts more than dispatch_max_batch ({batch}) tasks on one path")


# --- rule 17


def _check_fork(subject: Subject, path: Exit) -> None:
    """Report a path that fails what the kernel asks for: for want of memory, as most schedulers do, or for another
    reason, which the policy may bring about.
    """
    classed = FindingClass.HOUSE if path.marks.excuse else None
    reason = path.marks.excuse or "on this path"
    for result in subject.values(path.result):
        value = low_half(result)
        known = range_of(path.facts, 32, value)
        if value.is_const and signed(value.value, 32) == 0:
            continue
        if known.low == known.high == 0 or path.marks.ended or _not_a_fork(path):
            continue
        what = f"{_REFUSED[path.member]} then fails"
        if value.is_const:
            text = f"{path.member} returns {signed(value.value, 32)} {reason}: {what}"
            subject.error(17, path, text, classed=classed)
        elif value.kind in (TermKind.CALL, TermKind.LOAD) or known.signed_high < 0:
            text = f"{path.member} returns {describe(value)}, which need not be 0: {what}"
            subject.error(17, path, text, classed=None if value.kind is TermKind.LOAD else classed)


def _not_a_fork(path: Exit) -> bool:
    """Whether the path is only taken while the policy is being loaded (args->fork is false)."""
    for key, known in path.facts.items():
        term = key[1] if not hasattr(key, "operator") else None
        if isinstance(term, Term) and term.kind is TermKind.FIELD and term.name == "scx_init_task_args.fork":
            return getattr(known, "high", 1) == 0
    return False


# --- rule 18


def served_places(subject: Subject) -> frozenset[str]:
    """Return the maps and variables from which some other callback takes tasks to insert or to move."""
    inserts = [event for event in subject.events(*INSERTS, "scx_bpf_dsq_move", "scx_bpf_dsq_move_vtime")
               if event.member != "enqueue" and not is_callback_task(event.argument(0))]  # fmt: skip
    if not inserts:
        return frozenset()
    places = {place for event in inserts for term in event.arguments[:2] for place in _places(subject, term)}
    for event in subject.events(*_SOURCES_OF_TASKS):
        if event.member != "enqueue":
            places |= {place for term in event.arguments for place in _places(subject, term)}
    for event in subject.events(*_READERS):
        if event.member != "enqueue":
            places |= {place for term in event.arguments[:1] for place in _places(subject, term)}
    return frozenset(places)


def _places(subject: Subject, term: Term) -> set[str]:
    places = set()
    for value in subject.values(term):
        for part in inside(value):
            if part.kind is TermKind.MAP:
                places.add(part.name)
            elif part.kind is TermKind.GLOBAL:
                places.update(v.name for v in subject.image.variables.values() if v.section == part.name)
    return places


def _check_end_of_enqueue(subject: Subject, path: Exit, served: frozenset[str]) -> None:
    marks = path.marks
    if marks.inserts or marks.ended:
        return
    if marks.stores & served:
        return
    unchecked = next((pending for pending in marks.pending if pending.region in served), None)
    if unchecked is not None:
        subject.error(18, path, f"the result of the store into {unchecked.region} (line {unchecked.line}) is not "
                                     "looked at: when the map is full, the task is lost")  # fmt: skip
    elif _left_to_user_space(subject, path):
        subject.warning(
            18, path, "the task is handed to a program in user space, which must hand it back", "starvation"
        )
    elif marks.stores or marks.pending:
        names = ", ".join(sorted(marks.stores | {pending.region for pending in marks.pending}))
        subject.error(18, path, f"the task is stored in {names}, but no callback takes it from there and inserts it")
    else:
        subject.error(18, path, "enqueue ends on this path without inserting or storing the task")


def _left_to_user_space(subject: Subject, path: Exit) -> bool:
    """Whether a task is stored where no program of the object reads, and others come from where none writes."""

    def places(*functions: str) -> set[str]:
        return {place for event in subject.events(*functions) for place in _places(subject, event.arguments[0])}

    stored = path.marks.stores | {pending.region for pending in path.marks.pending}
    handed_back = places("bpf_map_pop_elem", "bpf_user_ringbuf_drain") - places(*_WRITERS)
    return bool(stored) and not stored & places(*_READERS) and bool(handed_back)
