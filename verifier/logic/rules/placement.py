"""Rules about which CPU: 1 (select_cpu's answer), 6 and 7 (the task's mask), 14 (whose task)."""

from __future__ import annotations

from schedagent.core.verification import Severity
from verifier.logic.rules.queues import QueueKind
from verifier.logic.rules.subject import CHOOSES_CPU, Insert, Subject, truths
from verifier.logic.walk import calls
from verifier.logic.walk.calls import MOST_CPUS, names
from verifier.logic.walk.events import Exit
from verifier.logic.walk.facts import Condition, Facts, is_either, range_of
from verifier.logic.walk.marking import found_cpu
from verifier.logic.walk.terms import Term, TermKind, describe, inside, is_callback_task, low_half, signed

_MASK_RESULTS = names(
    "bpf_cpumask_first bpf_cpumask_first_and bpf_cpumask_any_distribute bpf_cpumask_any_and_distribute"
)
_NEEDS_CHECK = frozenset({"scx_bpf_select_cpu_and", "scx_bpf_pick_idle_cpu", "scx_bpf_pick_idle_cpu_node"})
_PICKS = frozenset({*_NEEDS_CHECK, "scx_bpf_pick_any_cpu", "scx_bpf_pick_any_cpu_node", "scx_bpf_select_cpu_dfl"})
_FOREIGN_MASKS = ("scx_bpf_get_possible_cpumask", "scx_bpf_get_online_cpumask", "scx_bpf_get_idle_cpumask",
                  "scx_bpf_get_idle_smtmask")  # fmt: skip


def check(subject: Subject) -> None:
    """Report what breaks rules 1, 6, 7 (masks) and 14."""
    for path in subject.exits("select_cpu"):
        if not path.marks.ended:
            _check_answer(subject, path)
    for insert in subject.inserts():
        if insert.queue.kind is QueueKind.LOCAL_ON:
            _check_local_on(subject, insert)
        elif insert.queue.kind is QueueKind.LOCAL and insert.event.member == "dispatch":
            _check_local_of_dispatch(subject, insert)
    _check_masks(subject)
    for event in subject.events("scx_bpf_select_cpu_dfl", "scx_bpf_select_cpu_and"):
        task = event.argument(0)
        if event.member not in subject.ops.callbacks:
            continue  # from a program that no lock surrounds any task will do
        if task is not None and task.kind is not TermKind.UNKNOWN and not is_callback_task(task):
            subject.error(14, event, f"{event.raw}() is called for {describe(task)}, not for the callback's task p")


# --- rule 1


def _check_answer(subject: Subject, path: Exit) -> None:
    joined = low_half(path.result) in subject.walk.merged
    bounds = range_of(path.facts, 32, low_half(path.result))
    for result in subject.values(path.result):
        cpu = low_half(result)
        if cpu.is_const:
            if bounds.signed_low <= signed(cpu.value, 32) <= bounds.signed_high:
                _check_fixed_answer(subject, path, signed(cpu.value, 32))
        elif joined:
            continue  # what was tested before the paths met is not known
        elif cpu.kind is TermKind.CALL and cpu.name in _NEEDS_CHECK:
            _check_found(subject, path, cpu)
        elif cpu.kind is TermKind.PURE and cpu.name == "scx_bpf_nr_cpu_ids":
            subject.error(1, path, "select_cpu returns scx_bpf_nr_cpu_ids(), one more than the last CPU")
        elif cpu.kind in (TermKind.OP, TermKind.LINEAR) and not _is_kept(cpu):
            _check_computed_answer(subject, path, cpu)
        elif _is_kept(cpu) and not _tested(subject, path.facts, cpu, None):
            subject.warning(
                1, path, f"select_cpu returns {describe(cpu)} without a test that the task may use it", "affinity"
            )


def _is_kept(cpu: Term) -> bool:
    """Whether a CPU is what memory holds, or a part of it that is wide enough for any CPU: a bit field."""
    if cpu.kind is TermKind.OP and cpu.parts[0].removesuffix("32") == "and" and cpu.parts[2].is_const:
        mask = cpu.parts[2].value
        cpu = low_half(cpu.parts[1]) if mask & (mask + 1) == 0 and mask >= MOST_CPUS - 1 else cpu
    return cpu.kind is TermKind.LOAD


def _check_fixed_answer(subject: Subject, path: Exit, cpu: int) -> None:
    if cpu < 0:
        subject.error(1, path, f"select_cpu returns {cpu}, which is no CPU")
    elif cpu > 0:
        subject.error(1, path, f"select_cpu returns CPU {cpu}, which need not exist")
    else:
        subject.warning(1, path, "select_cpu returns CPU 0 whatever the task's mask allows", "affinity")


def _check_found(subject: Subject, path: Exit, cpu: Term) -> None:
    picked = found_cpu(path.facts, cpu)
    if not picked:
        text = "not tested: it is negative if no CPU is idle" if picked is None else "negative because it found none"
        subject.error(1, path, f"select_cpu returns the result of {cpu.name}(), {text}")
    elif not allowed(subject, path.facts, cpu, None):
        text = f"select_cpu returns what {cpu.name}() found in another mask than the task's: the kernel then chooses"
        subject.warning(1, path, f"{text} a CPU itself, and the claimed one stays unused", "affinity")


def _check_computed_answer(subject: Subject, path: Exit, cpu: Term) -> None:
    if _tested(subject, path.facts, cpu, None):
        return
    if _below_cpu_count(path.facts, cpu):
        subject.error(1, path, f"select_cpu returns {describe(cpu)} without a test of the task's mask")
    else:
        subject.error(1, path, f"select_cpu returns {describe(cpu)}, a number computed without a check")


def _below_cpu_count(facts: Facts, cpu: Term) -> bool:
    """Whether a number is kept below something that is no constant: `x % nr_cpus`, or a test `x < nr_cpus`."""
    if cpu.kind is TermKind.OP and cpu.parts[0].startswith(("mod", "smod")) and not cpu.parts[2].is_const:
        return True
    return any(
        isinstance(key, Condition) and key.operator != "eq"
        and ((key.left is cpu and known is True) or (key.right is cpu and known is False))
        and not (key.right.is_const and key.left.is_const)
        for key, known in facts.items()
    )  # fmt: skip


# --- rules 6 and 7


def _tested(subject: Subject, facts: Facts, cpu: Term, task: Term | None) -> bool:
    """Whether the path tested that the CPU is in the mask (of the task, if one is given)."""
    for term, true in truths(facts):
        if not true or term.kind is not TermKind.PURE or term.name != "bpf_cpumask_test_cpu":
            continue
        tested, mask = term.parts[1]
        if low_half(tested) is cpu and (task is None or not _is_foreign(subject, mask)):
            return True
    return may_use_all(facts)


def may_use_all(facts: Facts) -> bool:
    """Whether the path knows that the task may use every CPU: nr_cpus_allowed against a number that is no constant."""
    for key, known in facts.items():
        if isinstance(key, Condition) and not key.left.is_const and not key.right.is_const:
            names = [t.name for side in (key.left, key.right) for t in inside(side) if t.kind is TermKind.FIELD]
            if "task_struct.nr_cpus_allowed" in names and (key.operator == "eq") == (known is True):
                return True
    return False


def _is_foreign(subject: Subject, mask: Term) -> bool:
    """Whether a mask is another one than the task's own cpus_ptr.

    A mask that the policy keeps is the task's own if it lies in the task's storage, or if the policy fills it with what
    the task may use, or compares it with that; one of a domain, a node or the whole machine is not.
    """
    if is_either(mask):
        return any(_is_foreign(subject, each) for each in mask.parts[1])
    if mask.kind in (TermKind.CALL, TermKind.PURE):
        return mask.name in _FOREIGN_MASKS
    if mask.kind is TermKind.ADDRESS:
        return mask.name == "task_struct.cpus_mask"
    keepers = _keepers(mask) if mask.kind is TermKind.LOAD else set()
    infos = [subject.image.maps[name] for name in keepers if name in subject.image.maps]
    if not keepers or any(info.type == calls.TASK_STORAGE for info in infos):
        return False
    return not keepers & _masks_of_tasks(subject)


def _keepers(mask: Term) -> set[str]:
    """Return the maps and sections that a mask comes from."""
    return {part.name for part in inside(mask) if part.kind in (TermKind.MAP, TermKind.GLOBAL)}


def _masks_of_tasks(subject: Subject) -> set[str]:
    """Return the maps and sections with masks that are filled with, or compared with, what a task may use."""
    places: set[str] = set()
    for event in subject.events("bpf_cpumask_and", "bpf_cpumask_copy", "bpf_cpumask_subset"):
        if any(mask.kind in (TermKind.FIELD, TermKind.ARGUMENT, TermKind.UNKNOWN) for mask in event.arguments[1:3]):
            places |= _keepers(event.arguments[0])
    return places


def allowed(subject: Subject, facts: Facts, cpu: Term, task: Term | None) -> bool:
    """Whether a CPU is one that the task may use, as far as its origin or a test on the path shows."""
    if cpu.kind is TermKind.UNKNOWN:
        return True  # several paths were joined: nothing is known
    if cpu.kind is TermKind.PURE and cpu.name == "scx_bpf_task_cpu":
        return cpu.parts[1][0] is task
    if cpu.kind in (TermKind.PURE, TermKind.CALL) and cpu.name in _MASK_RESULTS:
        if not all(_is_foreign(subject, mask) for mask in cpu.parts[-1]):
            return True
    elif cpu.kind is TermKind.CALL and cpu.name in _PICKS:
        masked = cpu.name.startswith("scx_bpf_select") or not _is_foreign(subject, cpu.parts[2][0])
        if masked:
            return cpu.name not in _NEEDS_CHECK or found_cpu(facts, cpu) is True
    return _tested(subject, facts, cpu, task)


def _check_local_on(subject: Subject, insert: Insert) -> None:
    cpu = insert.queue.cpu
    if insert.queue.joined:
        return
    for value in subject.values(cpu) if cpu is not None else ():
        if not allowed(subject, insert.event.facts, low_half(value), insert.task):
            subject.error(6, insert.event, f"the task goes to SCX_DSQ_LOCAL_ON | {describe(value)} without a test that "
                                           "its mask has this CPU")  # fmt: skip
    if cpu is None:
        fixed = insert.queue.constant & 0xFFFFFFFF
        if not any(true and term.kind is TermKind.PURE and term.name == "bpf_cpumask_test_cpu" and
                   term.parts[1][0].is_const and term.parts[1][0].value == fixed
                   for term, true in truths(insert.event.facts)):  # fmt: skip
            subject.error(6, insert.event, f"the task goes to the local DSQ of CPU {fixed} without a test of its mask")


def _check_local_of_dispatch(subject: Subject, insert: Insert) -> None:
    """In dispatch SCX_DSQ_LOCAL is the dispatching CPU's, which the task must be allowed to use."""
    task = insert.task
    if task.kind is TermKind.UNKNOWN or (task.kind is TermKind.ARGUMENT and task.parts[1] == "prev"):
        return
    for term, true in truths(insert.event.facts):
        if (
            true
            and term.kind is TermKind.PURE
            and term.name == "bpf_cpumask_test_cpu"
            and not _is_foreign(subject, term.parts[1][1])
        ):
            return
    if not may_use_all(insert.event.facts):
        subject.error(
            7, insert.event, "dispatch puts a task into SCX_DSQ_LOCAL without a test that its mask has this CPU"
        )


def _check_masks(subject: Subject) -> None:
    """p->cpus_mask does not show that migration is disabled; p->cpus_ptr does."""
    for event in subject.events("bpf_cpumask_test_cpu", *CHOOSES_CPU, "scx_bpf_pick_any_cpu"):
        for mask in event.arguments:
            if mask.kind is TermKind.ADDRESS and mask.name == "task_struct.cpus_mask":
                subject.report(7, Severity.WARNING, event.member, event.line, f"{event.name}() looks at p->cpus_mask: "
                               "a task whose migration is disabled may use only what p->cpus_ptr allows",
                               trail=event.trail, cleared_by="migration disabled")  # fmt: skip
