"""Rule 27: what a policy may consist of, call and set, by exact name; whatever else there is, is refused."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

from schedagent.core.policies.renamed import advice
from schedagent.core.verification import Severity
from verifier.logic.rules.subject import Subject
from verifier.logic.walk import calls
from verifier.logic.walk.calls import names
from verifier.logic.walk.events import Event
from verifier.object.image import Function, Instruction, MapInfo, OpsStruct, Ref

_SECTIONS = frozenset(
    {"syscall", "tp_btf/sched_process_exec", "tp_btf/sched_process_exit", "tp_btf/sched_process_fork"}
)
"""Programs besides the callbacks: what tells that a task changed its program, came or went; what only a loader runs."""

_OBSERVED = re.compile(
    r"(tp_btf/|raw_tp/|raw_tracepoint/|tracepoint/sched/|tp/sched/)(sched|cgroup|task|cpuhp|futex|ipi)_\w+"
    r"|(tp|tracepoint)/syscalls/sys_(enter|exit)_(futex\w*|sched_\w+|execve(at)?)"
    r"|(kprobe|kretprobe)/(nvidia|nouveau|amdgpu|i915|xe|drm)_\w+"
    r"|(fentry|fexit)/(_*futex_\w+|do_futex|bpf_scx_reg|scx_\w+|cpuset_write_resmask)"
)
"""Programs that watch what scheduling is about, as schedulers of the field do: they see tasks, cgroups, locks, and who
calls a graphics driver, not what anybody types or sends. What they read has its own rules, and rule 32 has what they
keep as an input."""

_LICENSES = frozenset({"GPL", "GPL v2", "GPL and additional rights", "Dual BSD/GPL", "Dual MIT/GPL", "Dual MPL/GPL"})

_HELPERS = names(
    "map_lookup_elem map_update_elem map_delete_elem map_push_elem map_pop_elem map_peek_elem map_lookup_percpu_elem "
    "for_each_map_elem loop task_storage_get task_storage_delete cgrp_storage_get cgrp_storage_delete "
    "ktime_get_ns ktime_get_boot_ns ktime_get_coarse_ns ktime_get_tai_ns jiffies64 get_prandom_u32 "
    "get_smp_processor_id get_numa_node_id get_current_task_btf get_current_pid_tgid "
    "get_current_uid_gid get_current_comm get_current_cgroup_id get_current_ancestor_cgroup_id "
    "probe_read_kernel probe_read_kernel_str probe_read_user per_cpu_ptr this_cpu_ptr spin_lock spin_unlock "
    "timer_init timer_set_callback timer_start timer_cancel kptr_xchg strncmp"
)
"""Maps, time, who and where, timers. Reading has its own rules (`reads`); nothing hands bytes to user space."""

_HELPERS_BESIDES = names(
    "trace_printk trace_vprintk snprintf get_current_task ringbuf_reserve ringbuf_submit ringbuf_discard "
    "ringbuf_output ringbuf_query user_ringbuf_drain dynptr_data dynptr_read dynptr_from_mem perf_event_output "
    "perf_event_read perf_event_read_value get_func_ip"
)
"""What schedulers of the field do besides: they print for their authors, and talk with their own programs."""

_KFUNCS = names(
    # kernel/sched/ext.c and ext_idle.c
    "scx_bpf_create_dsq scx_bpf_destroy_dsq scx_bpf_dsq_insert scx_bpf_dsq_insert_vtime scx_bpf_dispatch "
    "scx_bpf_dispatch_vtime scx_bpf_dispatch_nr_slots scx_bpf_dispatch_cancel scx_bpf_dsq_move_to_local "
    "scx_bpf_consume scx_bpf_dsq_move scx_bpf_dsq_move_vtime scx_bpf_dsq_move_set_slice scx_bpf_dsq_move_set_vtime "
    "scx_bpf_dispatch_from_dsq scx_bpf_dispatch_vtime_from_dsq scx_bpf_dispatch_from_dsq_set_slice "
    "scx_bpf_dispatch_from_dsq_set_vtime scx_bpf_dsq_nr_queued scx_bpf_dsq_peek scx_bpf_dsq_reenq "
    "scx_bpf_reenqueue_local scx_bpf_kick_cpu scx_bpf_select_cpu_dfl scx_bpf_select_cpu_and scx_bpf_pick_idle_cpu "
    "scx_bpf_pick_idle_cpu_node scx_bpf_pick_any_cpu scx_bpf_pick_any_cpu_node scx_bpf_test_and_clear_cpu_idle "
    "scx_bpf_get_idle_cpumask scx_bpf_get_idle_smtmask scx_bpf_get_idle_cpumask_node scx_bpf_get_idle_smtmask_node "
    "scx_bpf_put_idle_cpumask scx_bpf_get_possible_cpumask scx_bpf_get_online_cpumask scx_bpf_put_cpumask "
    "scx_bpf_nr_cpu_ids scx_bpf_nr_node_ids scx_bpf_cpu_node scx_bpf_task_cpu scx_bpf_task_running "
    "scx_bpf_task_cgroup scx_bpf_task_set_slice scx_bpf_task_set_dsq_vtime scx_bpf_tid_to_task scx_bpf_cpu_curr "
    "scx_bpf_cpu_rq scx_bpf_locked_rq scx_bpf_cpuperf_cap scx_bpf_cpuperf_cur scx_bpf_cpuperf_set scx_bpf_now "
    "scx_bpf_events scx_bpf_error_bstr scx_bpf_exit_bstr scx_bpf_dump_bstr "
    # kernel/bpf/cpumask.c
    "bpf_cpumask_create bpf_cpumask_acquire bpf_cpumask_release bpf_cpumask_first bpf_cpumask_first_zero "
    "bpf_cpumask_first_and bpf_cpumask_set_cpu bpf_cpumask_clear_cpu bpf_cpumask_test_cpu "
    "bpf_cpumask_test_and_set_cpu bpf_cpumask_test_and_clear_cpu bpf_cpumask_setall bpf_cpumask_clear bpf_cpumask_and "
    "bpf_cpumask_or bpf_cpumask_xor bpf_cpumask_equal bpf_cpumask_intersects bpf_cpumask_subset bpf_cpumask_empty "
    "bpf_cpumask_full bpf_cpumask_copy bpf_cpumask_any_distribute bpf_cpumask_any_and_distribute bpf_cpumask_weight "
    # kernel/bpf/helpers.c and bpf_iter.c: tasks and cgroups, loops that count, objects, lists and trees
    "bpf_task_acquire bpf_task_release bpf_task_from_pid bpf_task_from_vpid bpf_task_under_cgroup bpf_cgroup_acquire "
    "bpf_cgroup_release bpf_cgroup_ancestor bpf_cgroup_from_id bpf_rcu_read_lock bpf_rcu_read_unlock "
    "bpf_iter_num_new bpf_iter_num_next bpf_iter_num_destroy bpf_iter_scx_dsq_new bpf_iter_scx_dsq_next "
    "bpf_iter_scx_dsq_destroy bpf_obj_new bpf_obj_drop bpf_refcount_acquire bpf_percpu_obj_new bpf_percpu_obj_drop "
    "bpf_rbtree_add bpf_rbtree_remove bpf_rbtree_first bpf_rbtree_root bpf_rbtree_left bpf_rbtree_right "
    "bpf_list_push_front bpf_list_push_back bpf_list_pop_front bpf_list_pop_back bpf_list_front bpf_list_back"
)
"""By today's or the former name; a ___variant, the form with a struct (__scx_bpf_) and an _impl count as their name."""

_KFUNCS_BESIDES = names(
    "bpf_arena_alloc_pages bpf_arena_free_pages bpf_arena_reserve_pages bpf_iter_css_new bpf_iter_css_next "
    "bpf_iter_css_destroy bpf_iter_bits_new bpf_iter_bits_next bpf_iter_bits_destroy bpf_cpumask_populate "
    "bpf_res_spin_lock bpf_res_spin_unlock bpf_res_spin_lock_irqsave bpf_res_spin_unlock_irqrestore "
    "bpf_local_irq_save bpf_local_irq_restore bpf_preempt_disable bpf_preempt_enable bpf_rdonly_cast "
    "bpf_cast_to_kern_ctx bpf_get_cpu_time_counter bpf_cpu_time_counter_to_ns bpf_strcmp bpf_strnlen "
    "bpf_stream_vprintk"
)
"""Memory of its own in pages, further iterators and locks, texts for its author: none of ours has them."""

_SYMBOLS_BESIDES = ("sd_", "sched_", "nr_", "kernel_cpustat", "kernel_stat", "psi_", "sugov_cpu", "vm_event_states",
                    "runqueues", "cpu_", "cpufreq_", "pcpu_hot", "__preempt_count", "hw_pressure",
                     "scx_", "__per_cpu", "CONFIG_", "LINUX_")  # fmt: skip
"""How the names of kernel variables begin that schedulers of the field read: rule 32 has them as inputs."""


_SYMBOLS = frozenset({"sd_llc_id", "jiffies"})
"""Kernel variables that a policy may read by name: the cache that CPUs share, and the time."""

_FLAGS: Mapping[str, int] = {
    "SCX_OPS_KEEP_BUILTIN_IDLE": 1 << 0,
    "SCX_OPS_ENQ_LAST": 1 << 1,
    "SCX_OPS_ENQ_EXITING": 1 << 2,
    "SCX_OPS_ENQ_MIGRATION_DISABLED": 1 << 4,
    "SCX_OPS_ALLOW_QUEUED_WAKEUP": 1 << 5,
    "SCX_OPS_BUILTIN_IDLE_PER_NODE": 1 << 6,
    "SCX_OPS_TID_TO_TASK": 1 << 8,
}
"""Flags that say what reaches the policy and how; the proof runs with them. Their bits where the kernel names none.

Not SCX_OPS_SWITCH_PARTIAL, which belongs to the loader: with it in the object, the proof's tasks are not the policy's.
Not SCX_OPS_ALWAYS_ENQ_IMMED, under which tasks come back to enqueue in ways that no rule here knows, and not the
kernel's own (SCX_OPS_HAS_CPU_PREEMPT).
"""

_FIELDS: Mapping[str, int] = {"timeout_ms": 1 << 30, "dispatch_max_batch": 512, "exit_dump_len": 1 << 20}
"""Numbers of the ops struct that an object may set, and the most. The rest is the loader's (hotplug_seq), or makes a
sub-scheduler of it (sub_cgroup_id)."""

_MAP_TYPES: Mapping[int, str] = {
    1: "HASH", 2: "ARRAY", 5: "PERCPU_HASH", 6: "PERCPU_ARRAY", 9: "LRU_HASH", 10: "LRU_PERCPU_HASH",
    12: "ARRAY_OF_MAPS", 13: "HASH_OF_MAPS", 22: "QUEUE", 23: "STACK", 29: "TASK_STORAGE",
    32: "CGRP_STORAGE",
}  # fmt: skip
"""enum bpf_map_type: what keeps the policy's numbers. Nothing that hands records to user space, programs or packets."""

_MAP_TYPES_BESIDES = frozenset({4, 7, 11, 27, 30, 31, 33})
"""PERF_EVENT_ARRAY, STACK_TRACE, LPM_TRIE, RINGBUF, BLOOM_FILTER, USER_RINGBUF and ARENA: the field has them."""

_MAP_FLAGS = 0x1 | 0x2 | 0x80 | 0x400 | 0x1000
"""BPF_F_NO_PREALLOC, _NO_COMMON_LRU, _RDONLY_PROG, _MMAPABLE and _INNER_MAP."""


def check(subject: Subject) -> None:
    """Report what breaks rule 27, but for what is read."""
    _check_object(subject)
    for ops in subject.image.ops:
        _check_flags(subject, ops)
    for name in reached(subject):
        _check_function(subject, subject.image.functions[name])
    made = {queue.term for event in subject.events("scx_bpf_create_dsq", member="init_task")
            for queue in subject.queues(event.arguments[0], event.facts)}  # fmt: skip
    for event in subject.events("scx_bpf_destroy_dsq"):
        of_its_task = {queue.term for queue in subject.queues(event.arguments[0], event.facts)} <= made
        if event.member in subject.ops.callbacks and event.member not in calls.MAY_SLEEP and not of_its_task:
            subject.error(27, event, f"{event.member} destroys a DSQ: the next insert into it ends the policy")
    _check_present(subject)
    for info in subject.image.maps.values():
        _check_map(subject, info)


def reached(subject: Subject) -> list[str]:
    """Return the functions that a program reaches: libbpf loads no others, such as those of headers."""
    programs = [function.name for function in subject.image.functions.values() if function.is_program]
    entered = {name for program in programs for name in subject.image.reached_from(program)}
    return [name for name in subject.image.functions if name in entered]


def _refuse(subject: Subject, text: str, where: str = "") -> None:
    subject.report(27, Severity.ERROR, where, subject.start_of(where) if where else None, text)


def _check_object(subject: Subject) -> None:
    image = subject.image
    if len(image.ops) > 1:
        names = ", ".join(ops.variable for ops in image.ops)
        _refuse(subject, f"the object defines {len(image.ops)} schedulers: {names}")
    for name in image.other_struct_ops:
        _refuse(subject, f"{name} is a struct_ops of another kind than sched_ext_ops")
    if image.license not in _LICENSES:
        _refuse(
            subject, f"the license {image.license!r} is not GPL-compatible; the kernel gives such a program no kfuncs"
        )
    for member in subject.ops.callbacks:
        if subject.features and f"sched_ext_ops.{member}" not in subject.features:
            _refuse(subject, f"this kernel's sched_ext_ops has no {member}", member)
        elif member not in calls.CALLBACK_ARGUMENTS:
            _refuse(subject, f"{member} is a callback that no rule is about", member)


def _check_flags(subject: Subject, ops: OpsStruct) -> None:
    flags = ops.numbers.get("flags", 0)
    for name, bit in _FLAGS.items():
        flags &= ~subject.enums.get(name, bit)
    if flags:
        known = {value: name for name, value in sorted(subject.enums.items()) if name.startswith("SCX_OPS_")}
        bits = (1 << bit for bit in range(64) if flags >> bit & 1)
        listed = ", ".join(known.get(bit, hex(bit)) for bit in bits)
        _refuse(
            subject, f"{ops.variable}.flags has {listed}: with that it would not be proved as it runs; leave it out"
        )
    for name, value in ops.numbers.items():
        most = _FIELDS.get(name, 0)
        if name != "flags" and not 0 <= value <= most:
            _refuse(subject, f"{ops.variable}.{name} is {value}; accepted are 0 to {most}")


def _check_function(subject: Subject, function: Function) -> None:
    first = next((each.line for each in function.instructions if each.line), None)
    kind = function.section.partition("/")[0].removesuffix(".s")
    if function.is_program and kind != "struct_ops" and function.section not in _SECTIONS:
        accepted = ", ".join(("struct_ops", *sorted(_SECTIONS)))
        text = f"{function.name} is a program of section {function.section}; accepted are {accepted}"
        report = subject.unusual if _OBSERVED.fullmatch(function.section) else subject.forbidden
        report(27, function.name, first, text)
    for instruction in function.instructions:
        text = _forbidden(instruction)
        if text:
            report = subject.unusual if _is_besides(instruction) else subject.forbidden
            report(27, _member_of(subject, function), instruction.line, text)


def _forbidden(instruction: Instruction) -> str:
    """Say what is wrong with what an instruction refers to; empty if nothing is."""
    ref, is_call = instruction.ref, instruction.opcode & 0xF7 == 0x85
    if ref is None:
        return "a call of a function that has no name" if is_call else ""
    if ref.kind is Ref.HELPER and ref.name.removeprefix("bpf_") not in _HELPERS:
        return f"{ref.name}() is no helper that a scheduler needs"
    if ref.kind is Ref.KFUNC and is_call and not is_known_kfunc(ref.name):
        return f"{ref.name}() is no kfunc that a scheduler needs"
    if ref.kind is Ref.KSYM and ref.name not in _SYMBOLS:
        return f"{ref.name} is no variable of the kernel that a scheduler needs"
    if ref.kind is Ref.VARIABLE and "struct_ops" in ref.name:
        return f"{ref.symbol or ref.name} is the ops struct itself: what it holds is judged as it is loaded"
    return ""


def _is_besides(instruction: Instruction) -> bool:
    """Whether schedulers of the field use what an instruction refers to, although none of ours does."""
    ref = instruction.ref
    if ref is None:
        return False
    if ref.kind is Ref.HELPER:
        return ref.name.removeprefix("bpf_") in _HELPERS_BESIDES
    return (ref.kind is Ref.KFUNC and ref.name.removesuffix("_impl") in _KFUNCS_BESIDES) or (
        ref.kind is Ref.KSYM and ref.name.startswith(_SYMBOLS_BESIDES)
    )


def is_known_kfunc(name: str) -> bool:
    """Whether a policy may call a kfunc of this name."""
    return name.partition("___")[0].removesuffix("_impl").removeprefix("__") in _KFUNCS


def _member_of(subject: Subject, function: Function) -> str:
    return next((m for m, name in subject.ops.callbacks.items() if name == function.name), function.name)


def _check_present(subject: Subject) -> None:
    """Kfuncs that a feasible path calls although the target does not have them."""
    for event in _events_of_sched_ext(subject) if subject.features else ():
        essential = event.raw.rpartition("___")[0] if "___" in event.raw else event.raw
        if essential not in subject.features and event.raw not in subject.features:
            subject.error(27, event, advice(essential) or f"this kernel has no {essential}()")


def _events_of_sched_ext(subject: Subject) -> Iterator[Event]:
    return (event for event in subject.walk.events if event.raw.startswith(("scx_bpf_", "__scx_bpf_")))


def _check_map(subject: Subject, info: MapInfo) -> None:
    for wrong in _wrong_with_map(info):
        report = subject.unusual if info.type in _MAP_TYPES_BESIDES and not info.pinning else subject.forbidden
        report(27, "", info.line, f"map {info.name} {wrong}")
    if info.inner is not None:
        _check_map(subject, info.inner)


def _wrong_with_map(info: MapInfo) -> Iterator[str]:
    if info.pinning:
        yield "is pinned: it would outlive the policy"
    if info.type not in _MAP_TYPES:
        yield f"is of type {info.type}; accepted are {', '.join(_MAP_TYPES.values())}"
    if info.flags & ~_MAP_FLAGS:
        yield f"has the flags {info.flags:#x}; accepted are those of {_MAP_FLAGS:#x}"
