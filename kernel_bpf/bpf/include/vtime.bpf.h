/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Weighted virtual time, one clock per queue. A task's vtime grows by the CPU
 * time it used, divided by its weight; the smallest goes first.
 *
 * Each queue has its own clock because shares cannot be equal across queues:
 * four tasks pinned to one CPU get less than a task that has another CPU to
 * itself, and on a common clock they would look like creditors forever.
 */
#ifndef SCHEDAGENT_VTIME_BPF_H
#define SCHEDAGENT_VTIME_BPF_H

#include "queues.bpf.h"

/* A slice ends at a timer tick, which may come this much later. */
#define TICK_MAX_NS (10 * NSEC_PER_MSEC)

#define NO_QUEUE NR_QUEUES

struct vtask {
	u64 vtime;
	u64 queue;	/* whose clock vtime belongs to */
	u64 exec_start; /* sum_exec_runtime when it was last given a CPU */
};

struct {
	__uint(type, BPF_MAP_TYPE_TASK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, int);
	__type(value, struct vtask);
} vtasks SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, NR_QUEUES);
	__type(key, u32);
	__type(value, u64);
} queue_clock SEC(".maps");

static __always_inline u64 *clock_of(u32 queue)
{
	return bpf_map_lookup_elem(&queue_clock, &queue);
}

static __always_inline struct vtask *vtask_of(struct task_struct *p)
{
	return bpf_task_storage_get(&vtasks, p, NULL, 0);
}

/*
 * For ops.init_task. Without memory for its record a task is still scheduled,
 * as one that never ran: failing here would make fork() fail.
 */
static __always_inline void vtask_init(struct task_struct *p)
{
	struct vtask *vt = bpf_task_storage_get(&vtasks, p, NULL,
						BPF_LOCAL_STORAGE_GET_F_CREATE);

	if (vt)
		vt->queue = NO_QUEUE;
}

/*
 * The farthest ahead of its queue's clock a task may be so that its turn still
 * comes within @starvation_ns: the clock advances by the CPU time that each of
 * the waiting tasks gets. Below this bound weights are exact; a task of very
 * small weight on a crowded machine gets more than its share.
 */
static __always_inline u64 vtime_ahead_max(u64 queue, u64 starvation_ns)
{
	u64 waiting = scx_bpf_dsq_nr_queued(queue) + 1;

	if (queue % CLASS_SLOTS == MAX_CPUS)
		return starvation_ns * nr_cpus / (waiting + nr_cpus);
	return starvation_ns / (waiting + 1);
}

/*
 * The key with which the task enters @queue. A sleeper keeps a credit of at
 * most @lag_ns, a debtor owes no more than starvation allows.
 */
static __always_inline u64 vtime_key(struct task_struct *p, u64 queue,
				     u64 lag_ns, u64 starvation_ns)
{
	u64 *clock = clock_of(queue), *old;
	struct vtask *vt = vtask_of(p);
	u64 latest;

	if (!clock)
		return 0;
	if (!vt)
		return *clock;
	if (vt->queue != queue) {
		old = clock_of(vt->queue);
		vt->vtime = old ? *clock + (vt->vtime - *old) : *clock;
		vt->queue = queue;
	}
	latest = *clock + vtime_ahead_max(queue, starvation_ns);
	if (time_before(vt->vtime, *clock - lag_ns))
		vt->vtime = *clock - lag_ns;
	if (time_before(latest, vt->vtime))
		vt->vtime = latest;
	return vt->vtime;
}

/* For ops.running: the clock follows the tasks that are given a CPU. */
static __always_inline void vtime_start(struct task_struct *p)
{
	struct vtask *vt = vtask_of(p);
	u64 *clock;

	if (!vt)
		return;
	vt->exec_start = p->se.sum_exec_runtime;
	clock = clock_of(vt->queue);
	if (clock && time_before(*clock, vt->vtime))
		*clock = vt->vtime;
}

/*
 * For ops.stopping: charge what was used, and return it in ns. A task runs on
 * past its slice only while nobody waits, and what nobody waited for is free.
 */
static __always_inline u64 vtime_stop(struct task_struct *p, u64 slice_ns)
{
	struct vtask *vt = vtask_of(p);
	u64 used;

	if (!vt)
		return 0;
	used = p->se.sum_exec_runtime - vt->exec_start;
	if (used > slice_ns + TICK_MAX_NS)
		used = slice_ns + TICK_MAX_NS;
	vt->vtime += used * WEIGHT_DEFAULT / p->scx.weight;
	return used;
}

#endif
