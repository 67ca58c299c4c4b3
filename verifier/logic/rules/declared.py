"""Rules about what the object declares: 12, 13, 15, 16, 26, 27 and 28."""

from __future__ import annotations

from collections.abc import Iterator

from schedagent.core.verification import Severity
from verifier.logic.rules.subject import FLAT_IDLE, IDLE_KFUNCS, Subject
from verifier.logic.walk import calls
from verifier.logic.walk.calls import names
from verifier.logic.walk.events import Event
from verifier.logic.walk.marking import KICKS
from verifier.logic.walk.terms import TermKind, inside, signed
from verifier.object.image import Function, Instruction, MapInfo, Ref

MAP_BYTES_MAX = 64 << 20
TIMEOUT_MAX_MS = 5000
ROUNDS_MAX = 1 << 23
"""Rounds of one loop: what the kernel allows bpf_loop(), and what policies write for "until I break"."""

_TRACING = ("tp_btf", "raw_tp", "raw_tracepoint", "fentry", "fexit", "tracing", "tp", "tracepoint")
_CALLED_BY_USER = ("syscall",)
_LICENSES = frozenset({"GPL", "GPL v2", "GPL and additional rights", "Dual BSD/GPL", "Dual MIT/GPL", "Dual MPL/GPL"})

_HELPERS = names(
    "map_lookup_elem map_update_elem map_delete_elem map_push_elem map_pop_elem map_peek_elem map_lookup_percpu_elem "
    "for_each_map_elem loop task_storage_get task_storage_delete cgrp_storage_get cgrp_storage_delete "
    "ktime_get_ns ktime_get_boot_ns ktime_get_coarse_ns ktime_get_tai_ns jiffies64 get_prandom_u32 "
    "get_smp_processor_id get_numa_node_id get_current_task get_current_task_btf get_current_pid_tgid "
    "get_current_uid_gid get_current_comm get_current_cgroup_id get_current_ancestor_cgroup_id "
    "get_ns_current_pid_tgid get_func_ip get_attach_cookie get_func_arg get_func_ret get_func_arg_cnt "
    "probe_read_kernel probe_read_kernel_str per_cpu_ptr this_cpu_ptr spin_lock spin_unlock "
    "timer_init timer_set_callback timer_start timer_cancel kptr_xchg "
    "ringbuf_output ringbuf_reserve ringbuf_submit ringbuf_discard ringbuf_query user_ringbuf_drain "
    "ringbuf_reserve_dynptr ringbuf_submit_dynptr ringbuf_discard_dynptr dynptr_from_mem dynptr_read dynptr_write "
    "dynptr_data perf_event_output trace_printk trace_vprintk snprintf strncmp strtol strtoul "
    "task_pt_regs get_task_stack"
)
"""What schedulers need: maps, time, who and where, reading kernel memory, timers, ring buffers to their own loader."""

_USER_MEMORY = frozenset({"probe_read_user", "probe_read_user_str"})
"""Reads of user memory: only in tracing programs, which run in the task they look at."""

_KFUNCS = (
    "scx_bpf_", "__scx_bpf_", "bpf_cpumask_", "bpf_task_", "bpf_cgroup_", "bpf_rcu_", "bpf_iter_", "bpf_obj_",
    "bpf_percpu_obj_", "bpf_refcount_acquire", "bpf_rbtree_", "bpf_list_", "bpf_rdonly_cast", "bpf_cast_to_kern_ctx",
    "bpf_preempt_", "bpf_local_irq_", "bpf_res_spin_", "bpf_arena_", "bpf_throw", "bpf_get_kmem_cache", "bpf_wq_",
    "bpf_dynptr_", "bpf_cpu_", "scx_arena_", "bpf_strlen", "bpf_strcmp", "bpf_strncmp", "bpf_strstr", "bpf_timer_",
    "bpf_kfunc_", "bpf_ksym_", "bpf_session_", "bpf_stream_vprintk",
)  # fmt: skip

_UNSIZED = frozenset({28, 29, 32, 24, 26})
"""Map types that need no max_entries: sk, task and cgroup storage, inode storage, struct_ops."""


def check(subject: Subject) -> None:
    """Report what breaks rules 12, 13, 15, 16, 26, 27 and 28."""
    _check_idle_tracking(subject)
    _check_last_task(subject)
    for member, name in subject.ops.callbacks.items():
        function = subject.image.functions.get(name)
        if function is not None and function.section.startswith("struct_ops.s/") and member not in calls.MAY_SLEEP:
            text = f"{function.name} is in section {function.section}, but {member} must not sleep"
            subject.report(16, Severity.ERROR, member, subject.start_of(member), text)
    _check_ops(subject)
    _check_object(subject)
    for function in subject.image.functions.values():
        _check_function(subject, function)
    _check_reached(subject)
    for info in subject.image.maps.values():
        _check_map(subject, info)
    for event in subject.events("bpf_iter_num_new", "bpf_loop"):
        _check_rounds(subject, event)


# --- rules 12, 13 and 15


def _check_idle_tracking(subject: Subject) -> None:
    if "update_idle" in subject.ops.callbacks and not subject.flag("SCX_OPS_KEEP_BUILTIN_IDLE"):
        for event in subject.events(*IDLE_KFUNCS):
            subject.error(12, event, f"{event.raw}() needs the built-in idle tracking, which update_idle without "
                                     "SCX_OPS_KEEP_BUILTIN_IDLE turns off")  # fmt: skip
        if "select_cpu" not in subject.ops.callbacks:
            subject.report(12, Severity.ERROR, "update_idle", subject.start_of("update_idle"),
                           "update_idle without SCX_OPS_KEEP_BUILTIN_IDLE needs an own select_cpu")  # fmt: skip
    per_node = subject.flag("SCX_OPS_BUILTIN_IDLE_PER_NODE")
    for event in subject.events(*FLAT_IDLE, *(f"{name}_node" for name in FLAT_IDLE)):
        if event.name.endswith("_node") != per_node:
            state = "with" if per_node else "without"
            subject.error(13, event, f"{event.raw}() is refused {state} SCX_OPS_BUILTIN_IDLE_PER_NODE")


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
        subject.report(26, Severity.ERROR, "", None, text)
    elif timeout > TIMEOUT_MAX_MS:
        text = f"timeout_ms is {timeout}; set .timeout_ms to at most {TIMEOUT_MAX_MS}"
        subject.report(26, Severity.ERROR, "", None, text)
    if "exit" not in subject.ops.callbacks:
        text = "there is no exit callback: nobody learns why the policy ended; record struct scx_exit_info in .exit"
        subject.report(26, Severity.ERROR, "", None, text)
    elif not any(name.startswith(("scx_exit_info.", "info.")) for name in subject.walk.fields):
        text = "exit looks at nothing of struct scx_exit_info: nobody learns why the policy ended"
        subject.report(26, Severity.ERROR, "exit", subject.start_of("exit"), text)


# --- rule 27


def _check_object(subject: Subject) -> None:
    image = subject.image
    if len(image.ops) > 1:
        names = ", ".join(ops.variable for ops in image.ops)
        subject.report(27, Severity.ERROR, "", None, f"the object defines {len(image.ops)} schedulers: {names}")
    for name in image.other_struct_ops:
        subject.report(27, Severity.ERROR, "", None, f"{name} is a struct_ops of another kind than sched_ext_ops")
    if image.license not in _LICENSES:
        text = f"the license {image.license!r} is not GPL-compatible; the kernel gives such a program no kfuncs"
        subject.report(27, Severity.ERROR, "", None, text)
    if subject.features:
        for member in subject.ops.callbacks:
            if f"sched_ext_ops.{member}" not in subject.features:
                text = f"this kernel's sched_ext_ops has no {member}"
                subject.report(27, Severity.ERROR, member, subject.start_of(member), text)


def _check_function(subject: Subject, function: Function) -> None:
    kind = function.section.partition("/")[0].removeprefix("?")
    first = next((each.line for each in function.instructions if each.line), None)
    if function.is_program and kind.removesuffix(".s") not in ("struct_ops", *_TRACING, *_CALLED_BY_USER):
        text = (
            f"{function.name} is a program of section {function.section}; accepted are struct_ops, syscall and tracing"
        )
        subject.report(27, Severity.ERROR, function.name, first, text)
    for instruction in _calls_of(function):
        _check_call(subject, function, kind, instruction)


def _calls_of(function: Function) -> Iterator[Instruction]:
    return (each for each in function.instructions if each.opcode & 0xF7 == 0x85)


def _check_call(subject: Subject, function: Function, kind: str, instruction: Instruction) -> None:
    ref = instruction.ref
    if ref is None or ref.kind not in (Ref.HELPER, Ref.KFUNC):
        return
    if ref.kind is Ref.KFUNC:
        known = ref.name.startswith(_KFUNCS)
    else:
        short = ref.name.removeprefix("bpf_")
        traced = not kind.startswith("struct_ops")
        known = short in _HELPERS or (short in _USER_MEMORY and traced)
    if not known:
        what = "kfunc" if ref.kind is Ref.KFUNC else "helper"
        text = f"{ref.name}() is no {what} that a scheduler needs"
        subject.report(27, Severity.ERROR, _member_of(subject, function), instruction.line, text)


def _member_of(subject: Subject, function: Function) -> str:
    return next((m for m, name in subject.ops.callbacks.items() if name == function.name), function.name)


def _check_reached(subject: Subject) -> None:
    """Kfuncs that a feasible path calls although the target does not have them."""
    for event in subject.walk.events:
        if not event.raw.startswith(("scx_bpf_", "__scx_bpf_")) or not subject.features:
            continue
        essential = event.raw.rpartition("___")[0] if "___" in event.raw else event.raw
        if essential not in subject.features and event.raw not in subject.features:
            subject.error(27, event, f"this kernel has no {essential}()")


# --- rule 28 and pins


def _check_rounds(subject: Subject, event: Event) -> None:
    bounds = (
        event.arguments[1:3] if event.name == "bpf_iter_num_new" else (subject.walk.terms.const(0), event.arguments[0])
    )
    if len(bounds) == 2 and all(bound.is_const for bound in bounds):
        rounds = signed(bounds[1].value, 32) - signed(bounds[0].value, 32)
        if rounds > ROUNDS_MAX:
            subject.error(28, event, f"a loop may go round {rounds} times; accepted are {ROUNDS_MAX}")


def _check_map(subject: Subject, info: MapInfo) -> None:
    if info.pinning:
        subject.report(27, Severity.ERROR, "", info.line, f"map {info.name} is pinned: it would outlive the policy")
    if info.max_entries == 0 and info.type not in _UNSIZED:
        subject.report(28, Severity.ERROR, "", info.line, f"map {info.name} declares no max_entries")
    size = info.max_entries * (info.key_size + info.value_size)
    if size > MAP_BYTES_MAX:
        text = f"map {info.name} may grow to {size >> 20} MiB; accepted are {MAP_BYTES_MAX >> 20} MiB"
        subject.report(28, Severity.ERROR, "", info.line, text)
    if info.inner is not None:
        _check_map(subject, info.inner)
