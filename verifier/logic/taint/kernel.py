"""What the kernel tells a policy: which fields, helpers and kfuncs are inputs, and which are free of charge.

Free is what scheduling is about, and what the proof brings about on every machine: weights, masks, whether a task is
a kernel thread, on a queue or running, queue lengths, idle CPUs, and CPU time since the last sleep. What is in no table
is "kernel memory", an input that nobody can declare.

Names of fields: include/linux/sched.h, include/linux/sched/ext.h, include/linux/cred.h, include/linux/cgroup-defs.h.
"""

from __future__ import annotations

from collections.abc import Mapping

from verifier.logic.taint.values import Kind
from verifier.logic.walk.calls import names

UNKNOWN = "kernel memory"

FIELD_INPUTS: Mapping[str, str] = {
    "task_struct.comm": "comm",
    "task_struct.thread_pid": "pid",
    "task_struct.scx.tid": "pid",
    "sched_ext_entity.tid": "pid",
    "task_struct.pids": "pid",
    "task_struct.real_parent": "parent",
    "task_struct.parent": "parent",
    "task_struct.group_leader": "parent",
    "task_struct.children": "parent",
    "task_struct.sibling": "parent",
    "task_struct.start_time": "time since boot",
    "task_struct.start_boottime": "time since boot",
    "task_struct.static_prio": "nice",
    "task_struct.normal_prio": "nice",
    "task_struct.prio": "nice",
    "task_struct.rt_priority": "nice",
    "task_struct.policy": "nice",
    "task_struct.nsproxy": "namespace",
    "nsproxy": "namespace",
    "pid_namespace": "namespace",
    "uts_namespace": "namespace",
    "user_namespace": "namespace",
    "task_struct.sched_task_group": "cgroup",
    "kernfs_node": "cgroup",
    "cgroup": "cgroup",
    "css_set": "cgroup",
    "cgroup_subsys_state": "cgroup",
    "task_group": "cgroup",
    "cred.uid": "uid",
    "cred.euid": "uid",
    "cred.suid": "uid",
    "cred.fsuid": "uid",
    "cred.user": "uid",
    "cred.gid": "gid",
    "cred.egid": "gid",
    "cred.sgid": "gid",
    "cred.fsgid": "gid",
    "cred.group_info": "gid",
    "group_info": "gid",
    "cred": "uid",
    "kuid_t": "uid",
    "kgid_t": "gid",
    "mm_struct.arg_start": "arguments",
    "mm_struct.arg_end": "arguments",
    "mm_struct.env_start": "arguments",
    "mm_struct.env_end": "arguments",
    "linux_binprm": "arguments",
    "task_struct.utime": "runtime",
    "task_struct.stime": "runtime",
    "task_struct.gtime": "runtime",
    "task_struct.nvcsw": "counters",
    "task_struct.nivcsw": "counters",
    "new_utsname": "kernel",
}
"""A field, or all of a struct -> the input that it is; the longest entry counts."""

FIELD_KINDS: Mapping[str, int] = {
    "task_struct.pid": Kind.PID,
    "task_struct.tgid": Kind.PID,
    "task_struct.flags": Kind.FLAGS,
    "task_struct.nr_cpus_allowed": Kind.ALLOWED,
    "task_struct.se.sum_exec_runtime": Kind.RUNTIME,
    "sched_entity.sum_exec_runtime": Kind.RUNTIME,
    "task_struct.se.prev_sum_exec_runtime": Kind.RUNTIME,
    "task_struct.se.exec_start": Kind.TIME,
    "sched_entity.exec_start": Kind.TIME,
    "task_struct.scx.dsq_vtime": Kind.KEY,
    "sched_ext_entity.dsq_vtime": Kind.KEY,
    "task_struct.thread_info.cpu": Kind.CPU,
    "thread_info.cpu": Kind.CPU,
    "task_struct.wake_cpu": Kind.CPU,
    "task_struct.recent_used_cpu": Kind.CPU,
    "rq.cpu": Kind.CPU,
    "rq.scx.clock": Kind.TIME,
    "task_struct.scx.flags": Kind.BITS,
    "sched_ext_entity.flags": Kind.BITS,
    "task_struct.scx.dsq_flags": Kind.BITS,
    "task_struct.in_iowait": Kind.BITS,
    "task_struct.__state": Kind.BITS,
    "task_struct.state": Kind.BITS,
    "rq.scx.flags": Kind.BITS,
    "task_struct.scx.selected_cpu": Kind.CPU,
    "task_struct.scx.sticky_cpu": Kind.CPU,
    "task_struct.scx.holding_cpu": Kind.CPU,
    "rq.clock": Kind.TIME,
    "rq.clock_task": Kind.TIME,
}

FREE_FIELDS = names(
    "task_struct.cpus_ptr task_struct.cpus_mask task_struct.user_cpus_ptr task_struct.migration_disabled "
    "task_struct.on_rq task_struct.on_cpu task_struct.se.load "
    "task_struct.se.on_rq task_struct.scx.weight task_struct.scx.slice task_struct.scx.dsq "
    "task_struct.scx.disallow sched_ext_entity.weight sched_ext_entity.slice "
    "sched_ext_entity.dsq sched_ext_entity.dsq_flags sched_ext_entity.disallow "
    "task_struct.cred task_struct.real_cred task_struct.cgroups task_struct.mm "
    "task_struct.sched_class cpumask bpf_cpumask "
    "scx_init_task_args scx_exit_task_args scx_cgroup_init_args scx_cpu_release_args scx_cpu_acquire_args "
    "scx_exit_info scx_dump_ctx rq.nr_running rq.curr rq.idle rq.scx.nr_running rq.cfs.h_nr_running "
    "bpf_iter_scx_dsq scx_minheap_elem"
)
"""Fields and structs whose value decides nothing that a proof does not show, or that only lead somewhere."""

NOT_FREE = names(
    "task_struct.scx.runnable_at sched_ext_entity.runnable_at task_struct.scx.core_sched_at "
    "sched_ext_entity.core_sched_at task_struct.scx.cgrp_moving_from sched_ext_entity.cgrp_moving_from"
)

CALL_KINDS: Mapping[str, int] = {
    "bpf_ktime_get_ns": Kind.TIME,
    "bpf_ktime_get_boot_ns": Kind.TIME,
    "bpf_ktime_get_coarse_ns": Kind.TIME,
    "scx_bpf_now": Kind.TIME,
    "bpf_jiffies64": Kind.TIME,
    "bpf_get_cpu_time_counter": Kind.TIME,
    "bpf_cpu_time_counter_to_ns": Kind.TIME,
    "scx_bpf_nr_cpu_ids": Kind.CPUS,
    "scx_bpf_nr_node_ids": Kind.NODES,
    "bpf_get_smp_processor_id": Kind.CPU,
    "scx_bpf_task_cpu": Kind.CPU,
    "scx_bpf_select_cpu_dfl": Kind.CPU,
    "scx_bpf_select_cpu_and": Kind.CPU,
    "scx_bpf_pick_idle_cpu": Kind.CPU,
    "scx_bpf_pick_any_cpu": Kind.CPU,
    "scx_bpf_pick_idle_cpu_node": Kind.CPU,
    "scx_bpf_pick_any_cpu_node": Kind.CPU,
    "bpf_cpumask_first": Kind.CPU,
    "bpf_cpumask_first_and": Kind.CPU,
    "bpf_cpumask_first_zero": Kind.CPU,
    "bpf_cpumask_any_distribute": Kind.CPU,
    "bpf_cpumask_any_and_distribute": Kind.CPU,
    "bpf_cpumask_weight": Kind.ALLOWED,
    "scx_bpf_cpu_node": Kind.NODE,
    "bpf_get_numa_node_id": Kind.NODE,
    "scx_bpf_this_cid": Kind.CPU,
    "scx_bpf_task_cid": Kind.CPU,
    "scx_bpf_nr_cids": Kind.CPUS,
}

CALL_INPUTS: Mapping[str, tuple[str, ...]] = {
    "bpf_get_prandom_u32": ("random numbers",),
    "bpf_get_current_uid_gid": ("uid", "gid"),
    "bpf_get_current_pid_tgid": ("pid",),
    "bpf_get_ns_current_pid_tgid": ("pid", "namespace"),
    "bpf_get_current_cgroup_id": ("cgroup",),
    "bpf_get_current_ancestor_cgroup_id": ("cgroup",),
    "bpf_current_task_under_cgroup": ("cgroup",),
    "bpf_task_under_cgroup": ("cgroup",),
    "bpf_get_netns_cookie": ("namespace",),
    "bpf_ktime_get_tai_ns": ("wall clock",),
    "bpf_cgroup_from_id": ("cgroup",),
    "bpf_cgroup_ancestor": ("cgroup",),
    "bpf_task_from_vpid": ("pid", "namespace"),
    "scx_bpf_task_from_tid": ("pid",),
    "bpf_task_get_cgroup1": ("cgroup",),
    "bpf_get_task_exe_file": ("arguments",),
    "bpf_map_sum_elem_count": ("counters",),
}
"""Calls whose result, or what they write, is an input."""

WRITES_INPUT: Mapping[str, tuple[int, tuple[str, ...]]] = {
    "bpf_get_current_comm": (1, ("comm",)),
    "bpf_probe_read_user": (1, ("arguments",)),
    "bpf_probe_read_user_str": (1, ("arguments",)),
    "bpf_copy_from_user": (1, ("arguments",)),
    "bpf_copy_from_user_task": (1, ("arguments",)),
    "scx_bpf_events": (1, ("counters",)),
}
"""Calls that write an input to the memory that an argument points to."""

READS_KERNEL = names("bpf_probe_read_kernel bpf_probe_read_kernel_str bpf_probe_read bpf_probe_read_str")
"""dst, size, source: what the source is decides."""

RETURNS_OBJECT = names(
    "bpf_get_current_task_btf bpf_get_current_task bpf_task_from_pid scx_bpf_task_cgroup scx_bpf_cpu_rq "
    "scx_bpf_cpu_curr scx_bpf_locked_rq scx_bpf_dsq_peek bpf_iter_scx_dsq_next bpf_task_acquire bpf_task_get_cgroup1 "
    "bpf_cgroup_from_id bpf_cgroup_ancestor bpf_task_from_vpid scx_bpf_get_idle_cpumask scx_bpf_get_idle_smtmask "
    "scx_bpf_get_idle_cpumask_node scx_bpf_get_idle_smtmask_node scx_bpf_get_possible_cpumask scx_bpf_task_from_tid "
    "scx_bpf_get_online_cpumask bpf_cgroup_acquire bpf_iter_task_next bpf_iter_css_next bpf_iter_css_task_next"
)

RETURNS_ARGUMENT = names("bpf_rdonly_cast bpf_cast_to_kern_ctx bpf_cpumask_acquire bpf_refcount_acquire")

ALLOCATES = names("bpf_obj_new bpf_cpumask_create bpf_percpu_obj_new")

FREE_CALLS = names(
    "scx_bpf_dsq_nr_queued scx_bpf_task_running scx_bpf_dispatch_nr_slots scx_bpf_dispatch_cancel scx_bpf_cpuperf_cap "
    "scx_bpf_cpuperf_cur scx_bpf_create_dsq scx_bpf_destroy_dsq scx_bpf_test_and_clear_cpu_idle "
    "scx_bpf_put_idle_cpumask scx_bpf_put_cpumask scx_bpf_reenqueue_local scx_bpf_sub_dispatch "
    "bpf_cpumask_test_cpu bpf_cpumask_test_and_set_cpu bpf_cpumask_test_and_clear_cpu bpf_cpumask_subset "
    "bpf_cpumask_intersects bpf_cpumask_empty bpf_cpumask_full bpf_cpumask_equal bpf_cpumask_release "
    "bpf_task_release bpf_cgroup_release bpf_rcu_read_lock bpf_rcu_read_unlock bpf_preempt_disable bpf_preempt_enable "
    "bpf_spin_lock bpf_spin_unlock bpf_res_spin_lock bpf_res_spin_unlock bpf_iter_num_destroy "
    "bpf_iter_scx_dsq_destroy bpf_iter_scx_dsq_new bpf_obj_drop bpf_timer_init bpf_timer_cancel bpf_wq_init "
    "bpf_task_storage_delete bpf_cgrp_storage_delete bpf_map_delete_elem scx_bpf_dump_bstr bpf_local_irq_save "
    "bpf_local_irq_restore bpf_throw scx_bpf_dsq_move_set_slice scx_bpf_dsq_move_set_vtime "
    "scx_bpf_dsq_insert scx_bpf_dsq_insert_vtime scx_bpf_dsq_move scx_bpf_dsq_move_vtime scx_bpf_dsq_move_to_local "
    "scx_bpf_kick_cpu scx_bpf_cpuperf_set scx_bpf_task_set_slice scx_bpf_task_set_dsq_vtime scx_bpf_error_bstr "
    "scx_bpf_exit_bstr scx_bpf_dsq_reenq bpf_trace_printk bpf_trace_vprintk bpf_snprintf bpf_strncmp bpf_strcmp "
    "bpf_strlen bpf_strnlen bpf_strchr bpf_strrchr bpf_strstr bpf_strnstr bpf_strspn bpf_strcspn bpf_strchrnul "
    "bpf_timer_start bpf_timer_set_callback bpf_wq_set_callback bpf_wq_start bpf_loop bpf_for_each_map_elem "
    "bpf_iter_task_destroy bpf_iter_css_destroy bpf_iter_css_new bpf_iter_task_new bpf_list_push_back "
    "bpf_list_push_front bpf_rbtree_add scx_bpf_remote_curr"
)
"""Calls whose result tells no more than their arguments do, and what is free."""

ERROR_CODES = names(
    "bpf_map_update_elem bpf_map_delete_elem bpf_map_push_elem bpf_map_pop_elem bpf_map_peek_elem "
    "bpf_task_storage_delete bpf_cgrp_storage_delete bpf_timer_init bpf_timer_start bpf_timer_cancel bpf_wq_init "
    "bpf_wq_start scx_bpf_create_dsq bpf_res_spin_lock bpf_iter_scx_dsq_new"
)
"""Calls whose result is 0 as long as nothing is full, missing or wrong: what else it is a proof may never show."""

EVENTS: Mapping[str, str] = {
    **dict.fromkeys(("cpu_online", "cpu_offline"), "cpus"),
    **dict.fromkeys(("cgroup_exit", "cgroup_cancel_move"), "cgroup"),
    **dict.fromkeys(names("dump dump_cpu dump_task"), "a debug dump"),
    **dict.fromkeys(names("sub_attach sub_detach"), "a scheduler below it"),
}
"""Callbacks that nothing brings about while the oracles look -> the input that it is whether they ran.

Cgroups are made, moved between, and given weights and limits in the mix (verifier.proving.mix)."""

CPU_ARGUMENT: Mapping[str, int] = {
    "bpf_cpumask_test_cpu": 1,
    "scx_bpf_test_and_clear_cpu_idle": 1,
    "scx_bpf_cpuperf_cap": 1,
    "scx_bpf_cpuperf_cur": 1,
    "scx_bpf_cpu_rq": 1,
    "scx_bpf_cpu_curr": 1,
    "scx_bpf_cpu_node": 1,
    "bpf_per_cpu_ptr": 2,
    "bpf_map_lookup_percpu_elem": 3,
}
"""Which argument is the number of a CPU."""

SYMBOL_KINDS: Mapping[str, int] = {
    "jiffies": Kind.TIME,
    "jiffies_64": Kind.TIME,
    "nr_cpu_ids": Kind.CPUS,
    "__num_online_cpus": Kind.CPUS,
    "nr_node_ids": Kind.NODES,
}
FREE_SYMBOLS = names("sd_llc_id sd_llc_size runqueues cpu_number sched_ext_ops bpf_scx_ops")
JIFFY_NS = 10_000_000.0
"""The longest that a jiffy lasts (CONFIG_HZ=100): what jiffies are compared with is judged by it."""


def of_field(name: str) -> tuple[str, int]:
    """Return the input that a field is, else what kind it is; ("", NONE) if it is free of charge."""
    base = name.partition("[")[0]
    if base in FIELD_KINDS:
        return "", FIELD_KINDS[base]
    parts = base.split(".")
    for length in range(len(parts), 0, -1):
        head = ".".join(parts[:length])
        if head in NOT_FREE:
            return "cgroup" if head.endswith("from") else "time since boot", Kind.NONE
        if FIELD_INPUTS.get(head):
            return FIELD_INPUTS[head], Kind.NONE
        if head in FREE_FIELDS:
            return "", Kind.NONE
    return UNKNOWN, Kind.NONE
