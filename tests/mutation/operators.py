"""The ways in which a policy is broken: each a kind of mistake that people and models make, one fault per mutant.

An operator is a generator function from a program to edits of its text. It only yields what it takes to be wrong in
every case; where a change may be harmless (no direct insert in select_cpu, a mask test that guards nothing) it says why
it leaves the place out.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

from tests.mutation.fault import Edit, Fault, Operator, at_top, edit_match, replaced
from tests.mutation.hostile import HOSTILE
from tests.mutation.program import Call, Function, Program, plain
from tests.mutation.syntax import Kind, Node

FIFO_INSERTS = ("dsq_insert", "scx_bpf_dsq_insert")
VTIME_INSERTS = ("dsq_insert_vtime", "scx_bpf_dsq_insert_vtime")
INSERTS = FIFO_INSERTS + VTIME_INSERTS
MOVES = ("dsq_move_to_local", "scx_bpf_dsq_move_to_local")
KICKS = ("scx_bpf_kick_cpu",)
STORES = ("bpf_map_push_elem", "bpf_rbtree_add_impl", "bpf_list_push_back_impl")
RELEASES = ("bpf_task_release", "bpf_cgroup_release", "scx_bpf_put_cpumask", "scx_bpf_put_idle_cpumask")

NOTHING = "((void)0)"
UNKNOWN_DSQ = 77777
"""Far from every id that a policy creates (the largest of ours is 4 * 513)."""


def _is_builtin(dsq: str) -> bool:
    return "LOCAL" in dsq or "GLOBAL" in dsq or dsq in ("local", "global")


def _enum(kind: str, name: str) -> str:
    return f"bpf_core_enum_value(enum {kind}, {name})"


def drop_insert(program: Program) -> Iterator[Fault]:
    """A task is neither inserted nor stored. Not in select_cpu: there enqueue follows, and nothing is lost."""
    for call in program.calls(INSERTS, program.reached_from("enqueue", "dispatch")):
        yield replaced(call.node, NOTHING, f"no insert into {program.code(call.arguments[1])}")


def drop_store(program: Program) -> Iterator[Fault]:
    """A policy that keeps its tasks itself does not store one, and thinks that it did."""
    for call in program.calls(STORES, program.reached_from("enqueue")):
        yield replaced(call.node, "0", "not stored")


def double_insert(program: Program) -> Iterator[Fault]:
    """The same task is inserted twice."""
    for call in program.calls(INSERTS, program.reached_from("enqueue", "select_cpu")):
        code = program.code(call.node)
        yield replaced(call.node, f"({{ {code}; {code}; }})", "inserted twice")


def drop_move(program: Program) -> Iterator[Fault]:
    """One queue is never served: every move from it in a function is gone."""
    served: dict[tuple[str, str], list[Call]] = {}
    for call in program.calls(MOVES, program.reached_from("dispatch")):
        served.setdefault((call.function.name, program.code(call.arguments[0])), []).append(call)
    for (_function, queue), calls in served.items():
        edits = tuple(Edit(call.node.start, call.node.end, "false") for call in calls)
        yield Fault(edits, f"no move from {queue}")


def drop_create(program: Program) -> Iterator[Fault]:
    """A DSQ is never created."""
    for call in program.calls(["scx_bpf_create_dsq"]):
        yield replaced(call.node, "0", "DSQ not created")


def builtin_id(program: Program) -> Iterator[Fault]:
    """A DSQ is created with bit 63 set, which is the kernel's."""
    for call in program.calls(["scx_bpf_create_dsq"]):
        queue = call.arguments[0]
        yield replaced(queue, f"({program.code(queue)}) | (1ULL << 63)", "bit 63 set in the id")


def wrong_queue(program: Program) -> Iterator[Fault]:
    """A task goes to a DSQ that does not exist, or dispatch looks at one."""
    for call in program.calls(INSERTS, program.reached_from("enqueue", "dispatch")):
        queue = call.arguments[1]
        if not _is_builtin(program.code(queue)):
            yield replaced(queue, f"({program.code(queue)}) + {UNKNOWN_DSQ}", "insert into another id")
    for call in program.calls(MOVES, program.reached_from("dispatch")):
        queue = call.arguments[0]
        yield replaced(queue, f"({program.code(queue)}) + {UNKNOWN_DSQ}", "move from another id")


def _slices(program: Program) -> Iterator[Node]:
    for call in program.calls(INSERTS, program.reached_from("enqueue", "select_cpu", "dispatch")):
        if "SLICE_INF" not in program.code(call.arguments[2]):
            yield call.arguments[2]


def huge_slice(program: Program) -> Iterator[Fault]:
    """Nanoseconds taken for picoseconds: a slice of seconds."""
    for node in _slices(program):
        yield replaced(node, f"({program.code(node)}) * 1000", "slice x 1000")


def tiny_slice(program: Program) -> Iterator[Fault]:
    """Microseconds taken for nanoseconds: a slice shorter than a switch. A thousandth of the longest is still one."""
    for node in _slices(program):
        if program.code(node) != "SLICE_MAX_NS":
            yield replaced(node, f"({program.code(node)}) / 1000", "slice / 1000")


def endless_slice(program: Program) -> Iterator[Fault]:
    """A slice that never ends, where nothing preempts."""
    for node in _slices(program):
        yield replaced(node, _enum("scx_public_consts", "SCX_SLICE_INF"), "infinite slice")


def drop_kick(program: Program) -> Iterator[Fault]:
    """Work is left in a queue of the policy and no idle CPU is told. An insert into a CPU's local queue tells it."""
    for call in program.calls(KICKS, program.reached_from("enqueue")):
        if "IDLE" in program.code(call.arguments[1]) and "LOCAL_ON" not in program.code(call.function.body):
            yield replaced(call.node, NOTHING, "idle CPU not kicked")


def kick_both(program: Program) -> Iterator[Fault]:
    """IDLE and PREEMPT in one kick."""
    for call in program.calls(KICKS):
        flags = call.arguments[1]
        other = "SCX_KICK_PREEMPT" if "IDLE" in program.code(flags) else "SCX_KICK_IDLE"
        both = f"{program.code(flags)} | {_enum('scx_kick_flags', other)}"
        yield replaced(flags, both, "kicked with IDLE and PREEMPT")


def _function(call: Call, to: str) -> str:
    """The name `to` spelled as the called one is: with its prefix, and with a ___suffix."""
    name = call.node.name
    prefix = "scx_bpf_" if name.startswith("scx_bpf_") else ""
    return prefix + to + name[len(plain(name)) :]


def mix_orders(program: Program) -> Iterator[Fault]:
    """Every second task is inserted by vtime into a FIFO, or without one into a vtime queue."""
    for call in program.calls(INSERTS, program.reached_from("enqueue")):
        task, queue, slice_ns, *_rest, flags = map(program.code, call.arguments)
        if _is_builtin(queue) or "___" in call.node.name:
            continue  # a policy with own declarations has not declared the other kfunc
        if plain(call.node.name) in VTIME_INSERTS:
            other = f"{_function(call, 'dsq_insert')}({task}, {queue}, {slice_ns}, {flags})"
        else:
            other = f"{_function(call, 'dsq_insert_vtime')}({task}, {queue}, {slice_ns}, scx_bpf_now(), {flags})"
        mixed = f"({{ if ({task}->pid & 1) {other}; else {program.code(call.node)}; }})"
        yield replaced(call.node, mixed, "FIFO and vtime in one DSQ")


def order_builtin(program: Program) -> Iterator[Fault]:
    """A vtime insert into a DSQ of the kernel."""
    for call in program.calls(VTIME_INSERTS, program.reached_from("enqueue")):
        for name in ("SCX_DSQ_GLOBAL", "SCX_DSQ_LOCAL"):
            yield replaced(call.arguments[1], _enum("scx_dsq_id_flags", name), f"vtime insert into {name}")


def _time_tests(program: Program) -> Iterator[Call]:
    callbacks = ("enqueue", "dispatch", "running", "stopping")
    yield from program.calls(["time_before"], program.reached_from(*callbacks))


def swap_order(program: Program) -> Iterator[Fault]:
    """Two times are compared the wrong way round."""
    for call in _time_tests(program):
        first, second = map(program.code, call.arguments)
        yield replaced(call.node, f"time_before({second}, {first})", f"{second} before {first}")


def drop_clamp(program: Program) -> Iterator[Fault]:
    """A sleeper comes back with all the time it slept as its credit.

    A clamp of debts is left in place: without it only the lightest of tasks wait longer, and no rule asks for it.
    """
    for function in program.reached_from("enqueue"):
        for node in function.body.walk():
            if node.kind is Kind.IF and _is_lag_clamp(program, node):
                condition = node.children[0]
                yield replaced(condition, "false", f"not clamped: {program.code(condition)}")


def _is_lag_clamp(program: Program, node: Node) -> bool:
    """if (time_before(vtime, clock - lag)) vtime = clock - lag; or return clock - lag;"""
    condition, body = program.code(node.children[0]), program.code(node.children[1])
    return condition.startswith("time_before") and re.search(r"(=|return)[^;=]* - ", body) is not None


def drop_charge(program: Program) -> Iterator[Fault]:
    """CPU time is not charged to the virtual time."""
    for function in program.reached_from("stopping"):
        for node in function.body.walk():
            code = program.code(node)
            if node.kind is Kind.COMPOUND_ASSIGNMENT and "vtime" in code.partition("+=")[0]:
                yield replaced(node, NOTHING, f"not charged: {' '.join(code.split())}")


def drop_weight(program: Program) -> Iterator[Fault]:
    """Weights do not count. Not for policies that say they ignore them."""
    if "weights" in program.info.declares:
        return
    for function in program.reached_from("enqueue", "stopping", "running", "dispatch"):
        for node in function.body.walk():
            factors = _weighting(program, node)
            if factors:
                yield replaced(node, factors, f"weight ignored: {' '.join(program.code(node).split())}")
    for call in program.calls(["weighted_slice"], program.reached_from("enqueue", "dispatch")):
        yield replaced(call.node, program.code(call.arguments[1]), "slice without weight")


def _weighting(program: Program, node: Node) -> str:
    """For a * b / weight: a."""
    if node.kind is not Kind.BINARY or len(node.children) != 2:
        return ""
    product, divisor = node.children
    operator = program.text[product.end : divisor.start]
    if "/" not in operator or "weight" not in program.code(divisor):
        return ""
    inner = [child for child in product.walk() if child.kind is Kind.BINARY]
    return program.code(inner[0].children[0]) if inner else ""


def blind_target(program: Program) -> Iterator[Fault]:
    """A CPU is used without asking the task's mask. Only where a local queue depends on the answer."""
    risky = [f for f in program.functions if re.search(r"LOCAL_ON|scx_bpf_dsq_move\(", program.code(f.body))]
    names = {function.name for function in risky}
    for call in program.calls(["bpf_cpumask_test_cpu"], program.reached_from("enqueue", "dispatch")):
        if call.function.name in names or _mentions(call.function, names):
            yield replaced(call.node, "true", "mask not tested")


def _mentions(function: Function, names: set[str]) -> bool:
    return any(node.name in names for node in function.body.walk())


def bad_cpu(program: Program) -> Iterator[Fault]:
    """select_cpu returns a CPU that does not exist."""
    for function in program.reached_from("select_cpu"):
        if not function.name.endswith(("select_cpu", "select_idle_cpu")):
            continue
        for node in function.body.walk():
            if node.kind is Kind.RETURN and "select_idle_cpu(" not in program.code(node):
                value = node.children[0]
                yield replaced(value, f"{program.code(value)} + 4096", "a CPU that does not exist")


def fail_fork(program: Program) -> Iterator[Fault]:
    """init_task returns an error instead of falling back."""
    for function in program.functions:
        if function.name == f"{program.info.name}_init_task":
            for node in function.body.walk():
                if node.kind is Kind.RETURN:
                    yield replaced(node.children[0], "args->fork ? -12 : 0", "-ENOMEM for every fork")


def early_return(program: Program) -> Iterator[Fault]:
    """enqueue forgets a kind of task."""
    for condition, who in (
        ("p->pid % 8 == 3", "one task in eight"),
        ("p->flags & 0x00200000", "kernel threads"),
        ("p->nr_cpus_allowed == 1", "pinned tasks"),
    ):
        yield from at_top(program, "enqueue", f"\n\tif ({condition})\n\t\treturn;", f"enqueue forgets {who}")


def drain_on_one(program: Program) -> Iterator[Fault]:
    """Only CPU 0 looks at the queues."""
    yield from at_top(program, "dispatch", "\n\tif (cpu != 0)\n\t\treturn;", "only CPU 0 dispatches")


def sleep_in_callback(program: Program) -> Iterator[Fault]:
    """A callback that holds the run queue is declared sleepable."""
    for callback in ("enqueue", "dispatch", "running", "stopping", "quiescent", "tick", "select_cpu"):
        name = f"{program.info.name}_{callback}"
        for pattern, text in (
            (rf"SCX_CALLBACK\({name}\b", f"SCX_CALLBACK_SLEEPABLE({name}"),
            (rf'"struct_ops/{name}"', f'"struct_ops.s/{name}"'),
        ):
            yield from edit_match(program, pattern, text, f"{callback} may sleep")


def no_timeout(program: Program) -> Iterator[Fault]:
    """The watchdog is left at its longest."""
    yield from edit_match(program, r"\.timeout_ms = \w+", ".timeout_ms = 0", "timeout_ms 0")
    yield from edit_match(program, r"\.timeout_ms = \w+", ".timeout_ms = 30000", "timeout_ms 30000")


def drop_exit(program: Program) -> Iterator[Fault]:
    """Nobody learns why the policy ended."""
    yield from edit_match(program, r"\t\.exit = [^,]*,\n", "", "no exit callback")


def last_to_nobody(program: Program) -> Iterator[Fault]:
    """ENQ_LAST is asked for and not handled. Not where the last task has a slice or a place in a local queue anyway."""
    renews = any(program.calls(["task_set_slice"], program.reached_from("dispatch")))
    asked = "ENQ_LAST" in program.text or re.search(r"\t\.flags = ", program.text)
    if asked or renews or not _keeps_tasks(program):
        return
    yield from edit_match(
        program, r"\t\.timeout_ms", "\t.flags = SCX_OPS_ENQ_LAST,\n\t.timeout_ms", "ENQ_LAST without a case for it"
    )


def _keeps_tasks(program: Program) -> bool:
    """Whether enqueue leaves tasks where only dispatch finds them."""
    functions = list(program.reached_from("enqueue"))
    queues = [program.code(call.arguments[1]) for call in program.calls(INSERTS, functions)]
    return any(program.calls(STORES, functions)) or not all(map(_is_builtin, queues))


def leak_reference(program: Program) -> Iterator[Fault]:
    """A reference is not given back."""
    for call in program.calls(RELEASES):
        yield replaced(call.node, NOTHING, "reference leaked")


OPERATORS: Mapping[str, Operator] = {
    operator.__name__: operator
    for operator in (
        drop_insert,
        drop_store,
        double_insert,
        drop_move,
        drop_create,
        builtin_id,
        wrong_queue,
        huge_slice,
        tiny_slice,
        endless_slice,
        drop_kick,
        kick_both,
        mix_orders,
        order_builtin,
        swap_order,
        drop_clamp,
        drop_charge,
        drop_weight,
        blind_target,
        bad_cpu,
        fail_fork,
        early_return,
        drain_on_one,
        sleep_in_callback,
        no_timeout,
        drop_exit,
        last_to_nobody,
        leak_reference,
    )
} | HOSTILE
