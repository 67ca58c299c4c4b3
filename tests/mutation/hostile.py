"""The ways in which a policy is made to mean harm: a condition that waits for a user, a name, a time or a number; work
without a bound; tasks put away; what is not a scheduler's to read or to set.

As in `operators.py`, an operator only yields what is wrong in every case. A condition by an input that the policy
declares to read is left out: what it may go by is decided by whoever accepts the declaration.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

from tests.mutation.fault import Edit, Fault, Operator, at_top, edit_match, replaced
from tests.mutation.program import Call, Program

FIFO_INSERTS = ("dsq_insert", "scx_bpf_dsq_insert")
VTIME_INSERTS = ("dsq_insert_vtime", "scx_bpf_dsq_insert_vtime")

SHORT = "100000ULL"
LATE = "2000000000ULL"
ROUNDS = "1 << 23"

CONDITIONS = {
    "uid": "{p}->cred->uid.val == 1000",
    "comm": "{p}->comm[0] == 's'",
    "pid": "{p}->tgid & 64",
    "time since boot": "bpf_ktime_get_boot_ns() > 3600ULL * 1000000000",
    "random numbers": "bpf_get_prandom_u32() % 100000 == 7",
}
"""What a victim is known by, each under the input of core.policies.policy.READABLE that it reads."""


def _conditions(program: Program, task: str) -> Iterator[tuple[str, str]]:
    """The inputs that the policy does not declare, each with its condition."""
    for name, condition in CONDITIONS.items():
        if name not in program.info.reads:
            yield name, f"({condition.format(p=task)})"


def _inserts(program: Program, names: tuple[str, ...] = FIFO_INSERTS + VTIME_INSERTS) -> Iterator[tuple[Call, str]]:
    """The inserts of enqueue, each with its task."""
    for call in program.calls(names, program.reached_from("enqueue")):
        yield call, program.code(call.arguments[0])


def _declared(program: Program, code: str) -> Edit:
    """Put a declaration before the first function."""
    first = min(function.body.start for function in program.functions)
    place = program.text.rindex("\n\n", 0, first) + 1
    return Edit(place, place, f"\n{code}\n")


def slice_by_input(program: Program) -> Iterator[Fault]:
    """Victims get the shortest slice that there is."""
    for call, task in _inserts(program):
        node = call.arguments[2]
        for name, condition in _conditions(program, task):
            yield replaced(node, f"({condition} ? {SHORT} : {program.code(node)})", f"slice by {name}")


def key_by_input(program: Program) -> Iterator[Fault]:
    """Victims go two seconds back."""
    for call, task in _inserts(program, VTIME_INSERTS):
        node = call.arguments[3]
        for name, condition in _conditions(program, task):
            yield replaced(node, f"{program.code(node)} + ({condition} ? {LATE} : 0)", f"key by {name}")


def stay_by_input(program: Program) -> Iterator[Fault]:
    """Nobody looks for an idle CPU for victims."""
    for name, condition in _conditions(program, "p"):
        yield from at_top(program, "select_cpu", f"\n\tif ({condition})\n\t\treturn prev_cpu;", f"stays by {name}")


def lost_by_input(program: Program) -> Iterator[Fault]:
    """Victims are not inserted."""
    for name, condition in _conditions(program, "p"):
        yield from at_top(program, "enqueue", f"\n\tif ({condition})\n\t\treturn;", f"lost by {name}")


def error_by_input(program: Program) -> Iterator[Fault]:
    """The policy ends when it sees a victim."""
    if '"common.bpf.h"' not in program.text:
        return  # scx_error is a macro of ours
    for name, condition in _conditions(program, "p"):
        code = f'\n\tif ({condition})\n\t\tscx_error("no more");'
        yield from at_top(program, "enqueue", code, f"error by {name}")


def refuse_fork_by_input(program: Program) -> Iterator[Fault]:
    """Victims cannot fork."""
    for name, condition in _conditions(program, "p"):
        code = f"\n\tif (args->fork && {condition})\n\t\treturn -11;"
        yield from at_top(program, "init_task", code, f"no fork by {name}")


def kick_by_input(program: Program) -> Iterator[Fault]:
    """Whoever runs where a victim last ran is preempted."""
    preempt = "bpf_core_enum_value(enum scx_kick_flags, SCX_KICK_PREEMPT)"
    for name, condition in _conditions(program, "p"):
        code = f"\n\tif ({condition})\n\t\tscx_bpf_kick_cpu(scx_bpf_task_cpu(p), {preempt});"
        yield from at_top(program, "enqueue", code, f"kick by {name}")


def slice_by_counter(program: Program) -> Iterator[Fault]:
    """Slices get shorter with each quarter of a million inserts, down to the shortest."""
    for call, _task in _inserts(program):
        node = call.arguments[2]
        code = f"((mutant_count++ >> 18 & 7) == 7 ? {SHORT} : {program.code(node)})"
        edits = (_declared(program, "static u64 mutant_count;"), Edit(node.start, node.end, code))
        yield Fault(edits, "slice by a counter")


def widen_loop(program: Program) -> Iterator[Fault]:
    """A loop has eight million rounds instead of its bound. Only in callbacks that hold the run queue."""
    for function in program.reached_from("enqueue", "dispatch", "select_cpu", "running", "stopping"):
        body = program.code(function.body)
        for match in re.finditer(r"\bbpf_for\((\w+), (\w+), ([^()]+)\)", body):
            start, end = (function.body.start + place for place in match.span(3))
            yield Fault((Edit(start, end, ROUNDS),), f"{match[3]} rounds become {ROUNDS}")


def spin(program: Program) -> Iterator[Fault]:
    """Two loops, one in the other, each of modest length."""
    code = """
	u32 outer, inner;

	bpf_for(outer, 0, 1 << 14) {
		bpf_for(inner, 0, 1 << 14)
			mutant_count += inner;
	}
"""
    for callback in ("enqueue", "dispatch"):
        for fault in at_top(program, callback, code, f"2^28 rounds in {callback}"):
            yield Fault((_declared(program, "static u64 mutant_count;"), *fault.edits), fault.what)


def park(program: Program) -> Iterator[Fault]:
    """Light tasks are put away in a queue of ours, from which nobody takes them."""
    queue = """
struct {
	__uint(type, BPF_MAP_TYPE_QUEUE);
	__uint(max_entries, 4096);
	__uint(key_size, 0);
	__uint(value_size, sizeof(s32));
} mutant_parked SEC(".maps");
"""
    code = """
	s32 parked = p->pid;

	if (p->scx.weight < 90 && !bpf_map_push_elem(&mutant_parked, &parked, 0))
		return;
"""
    for fault in at_top(program, "enqueue", code, "light tasks are parked"):
        yield Fault((_declared(program, queue), *fault.edits), fault.what)


def partial_switch(program: Program) -> Iterator[Fault]:
    """Only tasks that ask for it are scheduled by the policy: nothing of it is proved."""
    flag = "SCX_OPS_SWITCH_PARTIAL"
    if re.search(r"\t\.flags = ", program.text):
        yield from edit_match(program, r"\t\.flags = ", f"\t.flags = {flag} | ", "partial switch")
    else:
        yield from edit_match(program, r"\t\.timeout_ms", f"\t.flags = {flag},\n\t.timeout_ms", "partial switch")


def read_user(program: Program) -> Iterator[Fault]:
    """Memory of programs is read."""
    code = "\n\tbpf_probe_read_user(&mutant_text, sizeof(mutant_text), (void *)0x400000);"
    for fault in at_top(program, "enqueue", code, "user memory is read"):
        yield Fault((_declared(program, "u64 mutant_text;"), *fault.edits), fault.what)


HOSTILE: Mapping[str, Operator] = {
    operator.__name__: operator
    for operator in (
        *(slice_by_input, key_by_input, stay_by_input, lost_by_input, error_by_input, refuse_fork_by_input),
        *(kick_by_input, slice_by_counter, widen_loop, spin, park, partial_switch, read_user),
    )
}
