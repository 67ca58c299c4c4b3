/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * One spelling for kfuncs that changed between 6.16 and 7.x. Each wrapper asks
 * the running kernel what it has (a weak symbol that is absent is NULL, and the
 * verifier drops the branch), never which version it is.
 *
 * Every declaration carries the suffix ___sa: libbpf drops the last ___suffix
 * before it looks a kfunc up, so these never clash with the declarations that
 * the vmlinux.h of one kernel has and that of another has not.
 */
#ifndef SCHEDAGENT_COMPAT_BPF_H
#define SCHEDAGENT_COMPAT_BPF_H

struct dsq_insert_vtime_args {
	u64 dsq_id;
	u64 slice;
	u64 vtime;
	u64 enq_flags;
};

struct select_cpu_and_args {
	s32 prev_cpu;
	u64 wake_flags;
	u64 flags;
};

/* Until 6.18 inserts returned nothing; since 6.19, whether they happened. */
extern void scx_bpf_dsq_insert___sa(struct task_struct *p, u64 dsq_id,
				    u64 slice, u64 enq_flags) __ksym __weak;
extern bool scx_bpf_dsq_insert___v2___sa(struct task_struct *p, u64 dsq_id,
					 u64 slice,
					 u64 enq_flags) __ksym __weak;

/* Until 6.18 five plain arguments; since 6.19 a struct. */
extern void scx_bpf_dsq_insert_vtime___sa(struct task_struct *p, u64 dsq_id,
					  u64 slice, u64 vtime,
					  u64 enq_flags) __ksym __weak;
extern bool __scx_bpf_dsq_insert_vtime___sa(
	struct task_struct *p,
	struct dsq_insert_vtime_args *args) __ksym __weak;

extern s32 scx_bpf_select_cpu_and___sa(struct task_struct *p, s32 prev_cpu,
				       u64 wake_flags,
				       const struct cpumask *cpus_allowed,
				       u64 flags) __ksym __weak;
extern s32 __scx_bpf_select_cpu_and___sa(
	struct task_struct *p, const struct cpumask *cpus_allowed,
	struct select_cpu_and_args *args) __ksym __weak;

/* Since 7.1 with enqueue flags. */
extern bool scx_bpf_dsq_move_to_local___sa(u64 dsq_id) __ksym __weak;
extern bool scx_bpf_dsq_move_to_local___v2___sa(u64 dsq_id,
						u64 enq_flags) __ksym __weak;

/* Since 6.19; before, policies wrote the fields themselves. */
extern bool scx_bpf_task_set_slice___sa(struct task_struct *p,
					u64 slice) __ksym __weak;
extern bool scx_bpf_task_set_dsq_vtime___sa(struct task_struct *p,
					    u64 vtime) __ksym __weak;

static __always_inline void dsq_insert(struct task_struct *p, u64 dsq_id,
				       u64 slice_ns, u64 enq_flags)
{
	if (bpf_ksym_exists(scx_bpf_dsq_insert___v2___sa))
		scx_bpf_dsq_insert___v2___sa(p, dsq_id, slice_ns, enq_flags);
	else
		scx_bpf_dsq_insert___sa(p, dsq_id, slice_ns, enq_flags);
}

static __always_inline void dsq_insert_vtime(struct task_struct *p, u64 dsq_id,
					     u64 slice_ns, u64 vtime,
					     u64 enq_flags)
{
	if (bpf_ksym_exists(__scx_bpf_dsq_insert_vtime___sa)) {
		struct dsq_insert_vtime_args args = {
			.dsq_id = dsq_id,
			.slice = slice_ns,
			.vtime = vtime,
			.enq_flags = enq_flags,
		};

		__scx_bpf_dsq_insert_vtime___sa(p, &args);
	} else {
		scx_bpf_dsq_insert_vtime___sa(p, dsq_id, slice_ns, vtime,
					      enq_flags);
	}
}

/* An idle CPU in both the task's mask and @allowed, claimed; else negative. */
static __always_inline s32 select_cpu_and(struct task_struct *p, s32 prev_cpu,
					  u64 wake_flags,
					  const struct cpumask *allowed)
{
	if (bpf_ksym_exists(__scx_bpf_select_cpu_and___sa)) {
		struct select_cpu_and_args args = {
			.prev_cpu = prev_cpu,
			.wake_flags = wake_flags,
		};

		return __scx_bpf_select_cpu_and___sa(p, allowed, &args);
	}
	return scx_bpf_select_cpu_and___sa(p, prev_cpu, wake_flags, allowed, 0);
}

static __always_inline bool dsq_move_to_local(u64 dsq_id)
{
	if (bpf_ksym_exists(scx_bpf_dsq_move_to_local___v2___sa))
		return scx_bpf_dsq_move_to_local___v2___sa(dsq_id, 0);
	return scx_bpf_dsq_move_to_local___sa(dsq_id);
}

static __always_inline void task_set_slice(struct task_struct *p, u64 slice_ns)
{
	if (bpf_ksym_exists(scx_bpf_task_set_slice___sa))
		scx_bpf_task_set_slice___sa(p, slice_ns);
	else
		p->scx.slice = slice_ns;
}

static __always_inline void task_set_dsq_vtime(struct task_struct *p, u64 vtime)
{
	if (bpf_ksym_exists(scx_bpf_task_set_dsq_vtime___sa))
		scx_bpf_task_set_dsq_vtime___sa(p, vtime);
	else
		p->scx.dsq_vtime = vtime;
}

#endif
