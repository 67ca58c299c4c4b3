"""What is known of kfuncs, helpers and callbacks: names, arguments, results.

Sources: kernel/sched/ext.c and ext_idle.c (6.12 to 7.x), kernel/bpf/{helpers,cpumask,bpf_iter}.c and
include/uapi/linux/bpf.h.
"""

from __future__ import annotations

from collections.abc import Mapping

from schedagent.core.policies.renamed import RENAMED


def names(text: str) -> frozenset[str]:
    """Return the set of the names in a text."""
    return frozenset(text.split())


MOST_CPUS = 8192
"""The largest NR_CPUS of x86 distributions: bound of every CPU number."""

CALLBACK_ARGUMENTS: Mapping[str, tuple[str, ...]] = {
    "select_cpu": ("p", "prev_cpu", "wake_flags"),
    "enqueue": ("p", "enq_flags"),
    "dequeue": ("p", "deq_flags"),
    "dispatch": ("cpu", "prev"),
    "tick": ("p",),
    "runnable": ("p", "enq_flags"),
    "running": ("p",),
    "stopping": ("p", "runnable"),
    "quiescent": ("p", "deq_flags"),
    "yield": ("from", "to"),
    "core_sched_before": ("a", "b"),
    "set_weight": ("p", "weight"),
    "set_cpumask": ("p", "cpumask"),
    "update_idle": ("cpu", "idle"),
    "cpu_acquire": ("cpu", "args"),
    "cpu_release": ("cpu", "args"),
    "init_task": ("p", "args"),
    "exit_task": ("p", "args"),
    "enable": ("p",),
    "disable": ("p",),
    "dump": ("ctx",),
    "dump_cpu": ("ctx", "cpu", "idle"),
    "dump_task": ("ctx", "p"),
    "cgroup_init": ("cgrp", "args"),
    "cgroup_exit": ("cgrp",),
    "cgroup_prep_move": ("p", "from", "to"),
    "cgroup_move": ("p", "from", "to"),
    "cgroup_cancel_move": ("p", "from", "to"),
    "cgroup_set_weight": ("cgrp", "weight"),
    "cgroup_set_bandwidth": ("cgrp", "period_us", "quota_us", "burst_us"),
    "cgroup_set_idle": ("cgrp", "idle"),
    "cpu_online": ("cpu",),
    "cpu_offline": ("cpu",),
    "init": (),
    "exit": ("info",),
}

MAY_SLEEP = frozenset(
    [
        "init",
        "exit",
        "init_task",
        "cpu_online",
        "cpu_offline",
        "cgroup_init",
        "cgroup_exit",
        "cgroup_prep_move",
        "cgroup_set_weight",
        "cgroup_set_bandwidth",
        "cgroup_set_idle",
        "sub_attach",
        "sub_detach",
        "init_cids",
    ]
)
"""Callbacks that the kernel calls where it may sleep (comments in struct sched_ext_ops)."""

SCHEDULED = names(
    "select_cpu enqueue dequeue dispatch tick runnable running stopping quiescent yield core_sched_before set_weight "
    "set_cpumask"
)
"""Callbacks whose tasks init_task has let in (scx_init_task() of kernel/sched/ext.c; failing, it fails the fork)."""

CPU_ARGUMENTS = frozenset({"cpu", "prev_cpu"})

_BOOL = (0, 1)
_CPU = (0, MOST_CPUS - 1)
RESULT_RANGES: Mapping[str, tuple[int, int]] = {
    "bpf_cpumask_test_cpu": _BOOL,
    "bpf_cpumask_test_and_set_cpu": _BOOL,
    "bpf_cpumask_test_and_clear_cpu": _BOOL,
    "bpf_cpumask_subset": _BOOL,
    "bpf_cpumask_intersects": _BOOL,
    "bpf_cpumask_empty": _BOOL,
    "bpf_cpumask_full": _BOOL,
    "bpf_cpumask_equal": _BOOL,
    "scx_bpf_task_cpu": _CPU,
    "scx_bpf_select_cpu_dfl": _CPU,
    "bpf_get_smp_processor_id": _CPU,
    "bpf_cpumask_first": (0, MOST_CPUS),
    "bpf_cpumask_first_and": (0, MOST_CPUS),
    "bpf_cpumask_first_zero": (0, MOST_CPUS),
    "bpf_cpumask_any_distribute": (0, MOST_CPUS),
    "bpf_cpumask_any_and_distribute": (0, MOST_CPUS),
    "bpf_cpumask_weight": (0, MOST_CPUS),
    "scx_bpf_nr_cpu_ids": (1, MOST_CPUS),
    "scx_bpf_nr_node_ids": (1, 1024),
    "scx_bpf_cpuperf_cap": (0, 1024),
    "scx_bpf_cpuperf_cur": (0, 1024),
    "scx_bpf_dispatch_nr_slots": (0, 1 << 16),
}
"""Unsigned bounds of results; a kfunc that may return a negative error is not here."""

ONLY_ERROR: Mapping[str, int] = {"scx_bpf_pick_idle_cpu": -16}
"""The one negative number that a call returns: -EBUSY (kernel/sched/ext_idle.c)."""

PURE = frozenset(
    [
        "bpf_cpumask_test_cpu",
        "scx_bpf_task_cpu",
        "scx_bpf_nr_cpu_ids",
        "scx_bpf_nr_node_ids",
        "bpf_get_smp_processor_id",
        "bpf_cpumask_first",
        "bpf_cpumask_weight",
        "scx_bpf_cpuperf_cap",
        "scx_bpf_cpu_node",
        "bpf_get_current_task_btf",
        "scx_bpf_task_cgroup",
        "bpf_cpumask_subset",
        "bpf_cpumask_intersects",
        "bpf_cpumask_empty",
        "bpf_cpumask_full",
        "bpf_cpumask_equal",
        "scx_bpf_get_possible_cpumask",
        "scx_bpf_get_online_cpumask",
        "bpf_cast_to_kern_ctx",
    ]
)
"""Equal arguments give equal results within one callback, as far as the rules care."""

_TRUTHS = (
    "scx_bpf_dsq_insert scx_bpf_dsq_insert_vtime scx_bpf_dsq_move_to_local scx_bpf_dsq_move scx_bpf_dsq_move_vtime "
    "scx_bpf_test_and_clear_cpu_idle scx_bpf_task_set_slice scx_bpf_task_set_dsq_vtime scx_bpf_task_running "
    "scx_bpf_sub_dispatch"
)
BOOLEANS = frozenset({*names(_TRUTHS), *(name for name, span in RESULT_RANGES.items() if span == _BOOL)})
"""Kfuncs that return a bool: what clang's `& 1` after the call does not change."""

ALIASES = frozenset({"bpf_task_acquire", "bpf_rdonly_cast", "bpf_cpumask_acquire"})
"""What returns its first argument."""

ARITY: Mapping[str, int] = {
    "bpf_map_lookup_elem": 2,
    "bpf_map_update_elem": 4,
    "bpf_map_delete_elem": 2,
    "bpf_map_push_elem": 3,
    "bpf_map_pop_elem": 2,
    "bpf_map_peek_elem": 2,
    "bpf_task_storage_get": 4,
    "bpf_probe_read_kernel": 3,
    "bpf_probe_read_kernel_str": 3,
    "bpf_get_smp_processor_id": 0,
    "bpf_get_current_task_btf": 0,
    "bpf_ktime_get_ns": 0,
    "bpf_spin_lock": 1,
    "bpf_spin_unlock": 1,
    "bpf_rcu_read_lock": 0,
    "bpf_rcu_read_unlock": 0,
    "bpf_iter_num_new": 3,
    "bpf_iter_num_next": 1,
    "bpf_iter_num_destroy": 1,
    "bpf_iter_scx_dsq_new": 3,
    "bpf_iter_scx_dsq_next": 1,
    "bpf_iter_scx_dsq_destroy": 1,
    "bpf_cpumask_test_cpu": 2,
    "bpf_cpumask_first": 1,
    "bpf_task_from_pid": 1,
    "bpf_task_release": 1,
    "scx_bpf_now": 0,
    "scx_bpf_nr_cpu_ids": 0,
    "scx_bpf_task_cpu": 1,
    "scx_bpf_kick_cpu": 2,
    "scx_bpf_pick_idle_cpu": 2,
    "scx_bpf_pick_any_cpu": 2,
    "scx_bpf_test_and_clear_cpu_idle": 1,
    "scx_bpf_dsq_nr_queued": 1,
    "scx_bpf_create_dsq": 2,
    "scx_bpf_dsq_insert": 4,
    "scx_bpf_dsq_insert_vtime": 5,
    "scx_bpf_dsq_move_to_local": 2,
    "scx_bpf_select_cpu_dfl": 4,
    "scx_bpf_select_cpu_and": 5,
    "scx_bpf_task_set_slice": 2,
    "scx_bpf_task_set_dsq_vtime": 2,
    "scx_bpf_error_bstr": 3,
    "scx_bpf_dump_bstr": 3,
    "scx_bpf_exit_bstr": 4,
}
"""How many of r1 to r5 a call reads, where the rules' precision depends on it; five for all others."""

CALLBACK_ARGUMENT: Mapping[str, int] = {"bpf_loop": 1, "bpf_for_each_map_elem": 1, "bpf_user_ringbuf_drain": 1}
"""Helpers that call a function of the object at once -> which argument that is."""

DEFERRED_CALLBACK: Mapping[str, int] = {
    "bpf_timer_set_callback": 1,
    "bpf_wq_set_callback": 1,
    "bpf_wq_set_callback_impl": 1,
}
"""Helpers that have a function of the object called later."""

WRITES_FIRST_ARGUMENT = frozenset(
    [
        "bpf_probe_read_kernel",
        "bpf_probe_read_kernel_str",
        "bpf_probe_read_user",
        "bpf_probe_read_user_str",
        "bpf_get_current_comm",
        "bpf_probe_read",
        "bpf_probe_read_str",
        "bpf_snprintf",
        "bpf_copy_from_user",
    ]
)
WRITES_SECOND_ARGUMENT = frozenset({"bpf_map_pop_elem", "bpf_map_peek_elem"})
ONLY_READS = names(
    "bpf_map_lookup_elem bpf_map_update_elem bpf_map_delete_elem bpf_map_push_elem bpf_map_lookup_percpu_elem "
    "bpf_task_storage_get bpf_task_storage_delete bpf_cgrp_storage_get scx_bpf_dsq_insert_vtime scx_bpf_select_cpu_and "
    "scx_bpf_dsq_move scx_bpf_dsq_move_vtime scx_bpf_dsq_move_set_slice scx_bpf_dsq_move_set_vtime "
    "scx_bpf_error_bstr scx_bpf_exit_bstr scx_bpf_dump_bstr bpf_trace_printk bpf_trace_vprintk bpf_loop "
    "bpf_for_each_map_elem bpf_user_ringbuf_drain bpf_ringbuf_output bpf_perf_event_output bpf_strncmp"
)
"""What writes to none of the memory it is given; any other call may."""

FIXED_ENUMS: Mapping[str, int] = {
    "SCX_DSQ_GLOBAL": 1 << 63 | 1,
    "SCX_DSQ_LOCAL": 1 << 63 | 2,
    "SCX_DSQ_LOCAL_ON": 3 << 62,
    "SCX_DSQ_FLAG_BUILTIN": 1 << 63,
    "SCX_DSQ_FLAG_LOCAL_ON": 1 << 62,
    "SCX_DSQ_LOCAL_CPU_MASK": 0xFFFFFFFF,
    "SCX_SLICE_DFL": 20_000_000,
    "SCX_SLICE_INF": (1 << 64) - 1,
    "SCX_ENQ_WAKEUP": 1,
    "SCX_DEQ_SLEEP": 1,
    "SCX_TASK_QUEUED": 1,
    "SCX_OPS_KEEP_BUILTIN_IDLE": 1 << 0,
    "SCX_OPS_ENQ_LAST": 1 << 1,
    "SCX_OPS_SWITCH_PARTIAL": 1 << 3,
    "SCX_OPS_ENQ_MIGRATION_DISABLED": 1 << 4,
    "SCX_OPS_BUILTIN_IDLE_PER_NODE": 1 << 6,
    "SCX_KICK_IDLE": 1,
    "SCX_KICK_PREEMPT": 2,
    "SCX_KICK_WAIT": 4,
    "SCX_ENQ_PREEMPT": 1 << 32,
    "SCX_ENQ_LAST": 1 << 41,
    "SCX_CPUPERF_ONE": 1024,
}
"""Numbers that no kernel from 6.12 to 7.3 changed, for objects that name none of them."""

PRINTS = frozenset({"scx_bpf_error_bstr", "scx_bpf_exit_bstr", "scx_bpf_dump_bstr"})
"""Take a format, and the values for it in an array of 64-bit words."""

NEVER_RETURNS = frozenset({"bpf_throw"})
ENDS_POLICY = frozenset({"scx_bpf_error_bstr", "scx_bpf_exit_bstr"})

HASH, ARRAY, LRU_HASH, LRU_PERCPU_HASH, PERCPU_ARRAY, QUEUE, STACK, TASK_STORAGE = 1, 2, 9, 10, 6, 22, 23, 29
"""BPF_MAP_TYPE_* numbers that the rules look at (enum bpf_map_type)."""

KEEPS_ALL = frozenset({HASH, ARRAY})
"""Map types that keep what is put into them until it is deleted."""

ALWAYS_FOUND = frozenset({ARRAY, PERCPU_ARRAY})
"""Map types in which an index below max_entries is always there."""


def canonical(name: str) -> str:
    """Return the family of a kfunc: no ___variant, today's name for a renamed one, one name for all argument forms."""
    name = name.partition("___")[0].removesuffix("_impl")
    if name.startswith("__scx_bpf_"):
        name = name[2:]
    return RENAMED.get(name, name)


def takes_struct(name: str) -> bool:
    """Whether this is the form that takes its last arguments in a struct (since 6.19)."""
    return name.startswith("__scx_bpf_")


ARENA = "a pointer into the arena"
"""What the walk calls an address in memory that the policy shares with its own program, see BPF_MAP_TYPE_ARENA."""
