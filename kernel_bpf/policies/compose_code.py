"""The code of a composed policy, piece by piece, in the order a reader meets it: includes, small predicates, callbacks,
the ops struct. Every piece is a function of the spec alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from kernel_bpf.policies.c_text import callback, function, switch
from schedagent.core.policies.identity import cgroup_identity
from schedagent.core.policies.spec import (
    ANY_IDLE,
    BY_VTIME,
    DEADLINE,
    LONGEST_FIRST,
    PACK,
    PREVIOUS_CPU,
    PRIORITY,
    ROUND_ROBIN,
    SAME_LLC,
    SHARES,
    SHORTEST_FIRST,
    SPREAD,
    VTIME,
    PolicySpec,
    TaskClass,
)

_TASK = "struct task_struct *p"
_CLAIMS = {
    PREVIOUS_CPU: "claim_previous(p, prev_cpu)",
    SAME_LLC: "claim_same_llc(p, prev_cpu)",
    SPREAD: "claim_spread(p)",
    PACK: "claim_packed(p)",
}
_MEASURES = {
    "nice": "task_nice(p)",
    "burst_us": "task_burst_us(p)",
    "runtime_ms": "task_runtime_ms(p)",
    "wakeups_per_s": "wakeups_per_s(p)",
}

MEMBERS = ("select_cpu", "enqueue", "dispatch", "runnable", "running", "stopping", "quiescent", "init_task", "init",
           "exit", "dump")  # fmt: skip
"""Of the ops struct, in order."""


def number(kind: TaskClass) -> str:
    """The enumerator of a class."""
    return f"CLASS_{kind.name.upper()}"


def bound_name(kind: TaskClass, measure: str, side: str) -> str:
    """The tunable of a match's bound: its unit stands last."""
    stem, _, unit = measure.partition("_")
    return "_".join(word for word in (kind.name, stem, side, unit) if word)


# --- what a spec needs


def uses_programs(spec: PolicySpec) -> bool:
    """Whether the loader fills `task_class`."""
    return any(kind.match.programs for kind in spec.classes)


def uses_history(spec: PolicySpec) -> bool:
    """Whether the loader fills `task_history`."""
    return any(kind.order == LONGEST_FIRST for kind in spec.classes)


def _uses_bursts(spec: PolicySpec) -> bool:
    return any(kind.order in (DEADLINE, SHORTEST_FIRST) or kind.match.burst_us for kind in spec.classes)


def _uses_wakeups(spec: PolicySpec) -> bool:
    return any(kind.match.wakeups_per_s for kind in spec.classes)


def _uses_cgroups(spec: PolicySpec) -> bool:
    return any(kind.match.cgroup for kind in spec.classes)


def _uses_placement(spec: PolicySpec) -> bool:
    return any(kind.placement != ANY_IDLE for kind in spec.classes)


def _timed(spec: PolicySpec) -> list[TaskClass]:
    return [kind for kind in spec.classes if kind.order not in BY_VTIME]


def _has_shares(spec: PolicySpec) -> bool:
    return spec.dispatch == SHARES and len(spec.classes) > 1


def _has_rounds(spec: PolicySpec) -> bool:
    return spec.dispatch == ROUND_ROBIN and len(spec.classes) > 1


def includes(spec: PolicySpec) -> str:
    """The headers of the primitives that are used."""
    wanted = {
        "bandwidth": True,
        "classes": True,
        "burst": _uses_bursts(spec),
        "cgroup_name": _uses_cgroups(spec),
        "history": uses_history(spec),
        "known_class": uses_programs(spec),
        "placement": _uses_placement(spec),
        "preempt": spec.preempts,
        "rounds": _has_rounds(spec),
        "shares": _has_shares(spec),
        "wakeups": _uses_wakeups(spec),
    }
    return "\n".join(f'#include "{name}.bpf.h"' for name, used in wanted.items() if used)


# --- predicates


def predicates(spec: PolicySpec) -> Iterator[str]:
    """Everything between the tunables and the callbacks."""
    yield function("u64", "starvation_ns", ["void"], ["return starvation_ms * NSEC_PER_MSEC;"])
    for kind in spec.classes[:-1]:
        yield _matches(kind)
    yield _class_of(spec)
    yield _class_slice(spec)
    yield _slice_ns(spec)
    if _has_shares(spec):
        yield _per_class(spec, "u64", "class_share", lambda kind: [f"return {kind.name}_share;"])
    if spec.preempts:
        yield _per_class(spec, "u32", "class_rank", lambda kind: [f"return {spec.rank(kind)};"],
                         "Who may preempt whom: the higher the lower.")  # fmt: skip
        yield _per_class(
            spec, "bool", "class_preempts", lambda kind: [f"return {'true' if kind.preempts else 'false'};"]
        )
    if _uses_placement(spec):
        yield _preferred_cpu(spec)
    if _timed(spec):
        yield _key_of(spec)
    yield _enter(spec)
    yield _charge(spec)
    if _timed(spec):
        yield _serve_by_time(spec)
    yield _serve(spec)
    yield _serve_classes(spec)


def _per_class(
    spec: PolicySpec, kind: str, name: str, lines: Callable[[TaskClass], Sequence[str]], about: str = ""
) -> str:
    """A function of a class's number."""
    return function(kind, name, ["u32 class"], _switch(spec.classes, lines), about)


def _switch(classes: Sequence[TaskClass], lines: Callable[[TaskClass], Sequence[str]]) -> list[str]:
    return switch("class", {number(kind): lines(kind) for kind in classes})


def _matches(kind: TaskClass) -> str:
    tests = list(_tests(kind))
    lines = [line for test in tests for line in (f"if ({test})", "\treturn false;")]
    return function("bool", f"matches_{kind.name}", [_TASK], [*lines, "return true;"])


def _tests(kind: TaskClass) -> Iterator[str]:
    """What a task of this class is not."""
    match = kind.match
    if match.programs:
        yield f"known_class(p) != {number(kind)}"
    if match.cgroup:
        yield f"cgroup_name_hash(p) != {cgroup_identity(match.cgroup):#x}ULL"
    if match.kthread is not None:
        yield f"{'!' if match.kthread else ''}is_kthread(p)"
    if match.pinned is not None:
        yield f"{'!' if match.pinned else ''}is_pinned(p)"
    for measure, bounds in match.bounds():
        if bounds.at_least is not None:
            yield f"{_MEASURES[measure]} < {bound_name(kind, measure, 'from')}"
        if bounds.below is not None:
            yield f"{_MEASURES[measure]} >= {bound_name(kind, measure, 'below')}"


def _class_of(spec: PolicySpec) -> str:
    *chosen, rest = spec.classes
    lines = [line for kind in chosen for line in (f"if (matches_{kind.name}(p))", f"\treturn {number(kind)};")]
    return function("u32", "class_of", [_TASK], [*lines, f"return {number(rest)};"])


def _class_slice(spec: PolicySpec) -> str:
    return _per_class(
        spec, "u64", "class_slice", lambda kind: [f"return clamp_slice({kind.name}_slice_us * NSEC_PER_USEC);"]
    )


def _slice_ns(spec: PolicySpec) -> str:
    def lines(kind: TaskClass) -> list[str]:
        whole = "weighted_slice(p, slice)" if kind.slice_by_weight else "slice"
        due = f"{'lighter' if kind.order in BY_VTIME else 'group'}_slice(p, {whole})"
        if kind.order != LONGEST_FIRST:
            return [f"return {due};"]
        return [f"slice = {due};", f"return prelude_or(p, {kind.name}_prelude_us, slice);"]

    about = "The slice of a task, in ns: its class's, as its cgroup leaves it less or more than others."
    body = ["u64 slice = class_slice(class);", "", *_switch(spec.classes, lines)]
    return function("u64", "slice_ns", [_TASK, "u32 class"], body, about)


def _slice(spec: PolicySpec, task: str) -> str:
    """The call that returns a task's slice."""
    return f"slice_ns({task}, class)"


def _preferred_cpu(spec: PolicySpec) -> str:
    body = _switch(spec.classes, lambda kind: [f"return {_CLAIMS.get(kind.placement, '-1')};"])
    about = "An idle CPU of those that the class prefers, claimed; else negative."
    return function("s32", "preferred_cpu", [_TASK, "u32 class", "s32 prev_cpu"], body, about)


def _key_of(spec: PolicySpec) -> str:
    """The key of a class by time."""

    def lines(kind: TaskClass) -> list[str]:
        name = kind.name
        if kind.order == SHORTEST_FIRST:
            return [f"return shortest_key(p, {name}_patience_ms, {name}_long_us);"]
        if kind.order == LONGEST_FIRST:
            numbers = f"{name}_prelude_us, {name}_patience_ms, {name}_unknown_ms"
            return [f"return longest_key(p, {numbers});"]
        return ["return scx_bpf_now();"]

    about = "When a task is due that comes now: its key, in the classes ordered by time."
    return function("u64", "key_of", [_TASK, "u32 class"], _switch(_timed(spec), lines), about)


def _enter(spec: PolicySpec) -> str:
    """The key with which a task enters its queue, for every order."""

    def lines(kind: TaskClass) -> list[str]:
        if kind.order == VTIME:
            return ["return vtime_key(p, queue, slice, starvation_ns());"]
        if kind.order == DEADLINE:
            return [
                "key = vtime_key(p, queue, slice, starvation_ns());",
                f"return key + burst_slack(p, {kind.name}_slack_us);",
            ]
        return ["return timed_key(p, key_of(p, class));"]

    by_vtime = any(kind.order in BY_VTIME for kind in spec.classes)
    declared = ["u64 key;"] if any(kind.order == DEADLINE for kind in spec.classes) else []
    declared += [f"u64 slice = {_slice(spec, 'p')};"] if by_vtime else []
    body = [*declared, *([""] if declared else []), *_switch(spec.classes, lines)]
    about = "The task enters @queue, where its slice is also the credit of a sleeper: its key."
    return function("u64", "enter", [_TASK, "u32 class", "u64 queue"], body, about)


def _charge(spec: PolicySpec) -> str:
    """Account for CPU time, to the burst first: it may show that the task is of another class now."""
    about = "Account for the CPU time since the last time."
    burst = ["burst_add(p, used);"] if _uses_bursts(spec) else []
    if not _has_shares(spec):
        body = ["u64 used = vtime_stop(p);", "", *burst] if burst else ["vtime_stop(p);"]
        return function("void", "charge", [_TASK], body, about)
    body = ["u64 used = vtime_stop(p);", "u32 class;", "", *burst, "class = class_of(p);"]
    body += ["charge_class(class, used, class_share(class));", "return class;"]
    return function("u32", "charge", [_TASK], body, f"{about} Returns the task's class.")


def _serve_by_time(spec: PolicySpec) -> str:
    body = [
        "bool first = prev && !waits_before(class, cpu, key_of(prev, class));",
        "",
        "if (!first && dispatch_smaller_key(class, cpu))",
        "\treturn true;",
        f"if (prev && keep_running(prev, {_slice(spec, 'prev')}))",
        "\treturn true;",
        "return first && dispatch_smaller_key(class, cpu);",
    ]
    return function("bool", "serve_by_time", ["u32 class", "s32 cpu", "struct task_struct *prev"], body)


def _serve(spec: PolicySpec) -> str:
    """Serve one class."""

    def lines(kind: TaskClass) -> list[str]:
        if kind.order == VTIME:
            return ["return vtime_dispatch(class, cpu, prev, slice);"]
        if kind.order == DEADLINE:
            return [
                f"slack = prev ? burst_slack(prev, {kind.name}_slack_us) : 0;",
                "return deadline_dispatch(class, cpu, prev, slice, slack);",
            ]
        return ["return serve_by_time(class, cpu, prev);"]

    by_vtime = any(kind.order in BY_VTIME for kind in spec.classes)
    slack = ", slack" if any(kind.order == DEADLINE for kind in spec.classes) else ""
    declared = [f"u64 slice{slack};", ""] if by_vtime else []
    passed_on = ["if (class != running)", "\tprev = NULL;"]
    passed_on += [f"slice = prev ? {_slice(spec, 'prev')} : 0;"] if by_vtime else []
    about = "Give the CPU to a task of @class, or let @prev continue if it is @running, of this class, and still first."
    parameters = ["u32 class", "s32 cpu", "struct task_struct *prev", "u32 running"]
    return function("bool", "serve", parameters, [*declared, *passed_on, *_switch(spec.classes, lines)], about)


def _serve_classes(spec: PolicySpec) -> str:
    """Choose among the classes."""
    if len(spec.classes) == 1:
        body, about = [f"serve({number(spec.classes[0])}, cpu, prev, running);"], ""
    elif spec.dispatch == PRIORITY:
        *others, last = [number(kind) for kind in spec.by_rank]
        body = [line for kind in others for line in (f"if (serve({kind}, cpu, prev, running))", "\treturn;")]
        body, about = [*body, f"serve({last}, cpu, prev, running);"], "By priority, highest first."
    elif spec.dispatch == SHARES:
        body, about = _BY_SHARES, "The class with the least CPU time for its share; if it has no task for us, the next."
    else:
        body, about = _ROUND_ROBIN, "Round robin; a class without a task for this CPU is passed over."
    return function("void", "serve_classes", ["s32 cpu", "struct task_struct *prev", "u32 running"], body, about)


_BY_SHARES = [
    "u32 round, class, tried = 0;",
    "",
    "bpf_for(round, 0, NR_CLASSES) {",
    "\tclass = next_class(NR_CLASSES, cpu, tried, running);",
    "\tif (class >= NR_CLASSES)",
    "\t\treturn;",
    "\tif (serve(class, cpu, prev, running)) {",
    "\t\tadvance_class_clock(class);",
    "\t\treturn;",
    "\t}",
    "\ttried |= 1U << class;",
    "}",
]
_ROUND_ROBIN = [
    "u32 first = round_start(), step;",
    "",
    "bpf_for(step, 0, NR_CLASSES) {",
    "\tu32 class = (first + step) % NR_CLASSES;",
    "",
    "\tif (serve(class, cpu, prev, running)) {",
    "\t\tround_advance(class);",
    "\t\treturn;",
    "\t}",
    "}",
]


# --- callbacks


def callbacks(spec: PolicySpec) -> Iterator[str]:
    """The callbacks, in the order a task meets them."""
    name = spec.name
    yield _select_cpu(spec)
    yield _enqueue(spec)
    yield _dispatch(spec)
    waking = ["cgroup_runnable(p);"]
    waking += ["count_wakeup(p, enq_flags);"] if _uses_wakeups(spec) else []
    yield callback("void", f"{name}_runnable", [_TASK, "u64 enq_flags"], waking)
    running = ["vtime_start(p);"]
    stopping = ["charge(p);"]
    if spec.preempts:
        running.append("note_rank(scx_bpf_task_cpu(p), class_rank(class_of(p)));")
        stopping.append("note_rank(scx_bpf_task_cpu(p), NO_RANK);")
    yield callback("void", f"{name}_running", [_TASK], running)
    yield callback("void", f"{name}_stopping", [_TASK, "bool runnable"], stopping)
    sleeping = ["cgroup_quiescent(p);", "return_budget(p);"]
    sleeping += ["burst_end(p, deq_flags);"] if _uses_bursts(spec) else []
    sleeping += ["prelude_restart(p, deq_flags);"] if uses_history(spec) else []
    yield callback("void", f"{name}_quiescent", [_TASK, "u64 deq_flags"], sleeping)
    yield _init_task(spec)
    yield callback("s32", f"{name}_init", [], ["return create_limits() ?: create_queues(NR_CLASSES);"], sleepable=True)
    yield callback("void", f"{name}_exit", ["struct scx_exit_info *ei"], ["record_exit(ei);"])
    yield callback("void", f"{name}_dump", ["struct scx_dump_ctx *dump"], ["dump_queues(NR_CLASSES);"])
    yield "LIMIT_CALLBACKS"


def _select_cpu(spec: PolicySpec) -> str:
    parameters = [_TASK, "s32 prev_cpu", "u64 wake_flags"]
    body = ["u32 class = class_of(p);", f"u64 slice = {_slice(spec, 'p')};"]
    if _uses_placement(spec):
        body += [
            "s32 cpu = preferred_cpu(p, class, prev_cpu);",
            "",
            "if (cpu >= 0) {",
            "\tslice = granted_slice(p, slice);",
            "\tif (slice)",
            "\t\tdsq_insert(p, DSQ_LOCAL, slice, 0);",
            "\treturn cpu;",
            "}",
        ]
    else:
        body += [""]
    return callback(
        "s32",
        f"{spec.name}_select_cpu",
        parameters,
        [*body, "return select_idle_cpu(p, prev_cpu, wake_flags, slice);"],
    )


def _enqueue(spec: PolicySpec) -> str:
    body = [
        "u32 class = class_of(p);",
        f"u64 queue = task_queue(p, class), slice = {_slice(spec, 'p')};",
        "u64 key = enter(p, class, queue);",
        "",
        *(["refresh_class(class);"] if _has_shares(spec) else []),
    ]
    if spec.preempts:
        body += [
            "if (!join_queue(p, queue, slice, key, enq_flags))",
            "\treturn;",
            "if ((enq_flags & ENQ_WAKEUP) && class_preempts(class))",
            "\tpreempt_lower(p, class_rank(class), preempt_scan_cpus);",
        ]
    else:
        body += ["join_queue(p, queue, slice, key, enq_flags);"]
    return callback("void", f"{spec.name}_enqueue", [_TASK, "u64 enq_flags"], body)


def _dispatch(spec: PolicySpec) -> str:
    by_vtime = sum(1 << position for position, kind in enumerate(spec.classes) if kind.order in BY_VTIME)
    noted = ["\tnote_rank(cpu, class_rank(running));"] if spec.preempts else []
    charged = ["\trunning = charge(prev);"] if _has_shares(spec) else ["\tcharge(prev);", "\trunning = class_of(prev);"]
    body = [
        "u32 running = NR_CLASSES;",
        "",
        "if (wants_cpu(prev)) {",
        *charged,
        *noted,
        "}",
        f"if (!rescue_classes(NR_CLASSES, {by_vtime:#x}, cpu, starvation_ns()))",
        "\tserve_classes(cpu, prev, running);",
    ]
    return callback("void", f"{spec.name}_dispatch", ["s32 cpu", "struct task_struct *prev"], body)


def _init_task(spec: PolicySpec) -> str:
    calls = {
        "vtask_init": True,
        "cgroup_task_init": True,
        "burst_init": _uses_bursts(spec),
        "prelude_init": uses_history(spec),
        "wakeups_init": _uses_wakeups(spec),
        "cgroup_name_init": _uses_cgroups(spec),
        "identity_init": uses_programs(spec) or uses_history(spec),
    }
    body = [f"{name}(p);" for name, used in calls.items() if used]
    parameters = [_TASK, "struct scx_init_task_args *args"]
    return callback("s32", f"{spec.name}_init_task", parameters, [*body, "return 0;"], sleepable=True)


def ops_struct(spec: PolicySpec) -> str:
    """The ops struct, which stands last."""
    lines = [f".{member} = (void *){spec.name}_{member}," for member in MEMBERS]
    lines += ["LIMIT_OPS,", ".timeout_ms = WATCHDOG_MS,", ".exit_dump_len = DUMP_BYTES,", f'.name = "{spec.name}",']
    written = "\n".join(f"\t{line}" for line in lines)
    return f'SEC(".struct_ops.link")\nstruct sched_ext_ops {spec.name} = {{\n{written}\n}};'
