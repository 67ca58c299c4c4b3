/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Weighted virtual time, one clock per queue. A task's vtime grows by the CPU
 * time it used, divided by its weight; the smallest goes first.
 *
 * Each queue has its own clock because shares cannot be equal across queues:
 * four tasks pinned to one CPU get less than a task that has another CPU to
 * itself, and on a common clock they would look like creditors for good.
 */
#ifndef SCHEDAGENT_VTIME_BPF_H
#define SCHEDAGENT_VTIME_BPF_H

#include "queues.bpf.h"

#ifndef SCHEDAGENT_BANDWIDTH_BPF_H
#define charge_budget(p, used_ns)
#endif

#ifndef SCHEDAGENT_CGROUPS_BPF_H
/* CPU time in ns as the virtual time of a task. */
static __always_inline u64 virtual_time(struct task_struct *p, u64 used_ns)
{
	return used_ns * WEIGHT_DEFAULT / p->scx.weight;
}
#endif

/* How often a CPU looks for tasks that wait too long, and how far. */
#define RESCUE_PERIOD_NS (50 * NSEC_PER_MSEC)
#define RESCUE_DEPTH	 64

/* Bound of pinned_credit: what is past it is forgotten. */
#define CREDIT_MAX_NS ((s64)(100 * NSEC_PER_MSEC))

#define NO_QUEUE NR_QUEUES

struct vtask {
	u64 vtime;
	u64 queue;	/* whose clock vtime belongs to */
	u64 exec_start; /* sum_exec_runtime when it was last charged */
	u64 queued_at;	/* when it last joined a queue, scx_bpf_now() */
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

/*
 * By how much CPU time, in ns, the tasks pinned to a CPU (index: their queue)
 * are behind what they are due of it, beside those of the shared queue. Tables
 * are maps, not plain arrays: the compiler likes to form the address before it
 * checks the index, which the verifier refuses.
 */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, NR_QUEUES);
	__type(key, u32);
	__type(value, s64);
} pinned_credit SEC(".maps");

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
 * The key with which the task enters @queue. A sleeper keeps a credit of at
 * most @lag_ns, a debtor owes no more than @debt_ns.
 */
static __always_inline u64 vtime_key(struct task_struct *p, u64 queue,
				     u64 lag_ns, u64 debt_ns)
{
	u64 *clock = clock_of(queue), *old;
	struct vtask *vt = vtask_of(p);

	if (!clock)
		return 0;
	if (!vt)
		return *clock;
	if (vt->queue != queue) {
		old = clock_of(vt->queue);
		vt->vtime = old ? *clock + (vt->vtime - *old) : *clock;
		vt->queue = queue;
	}
	if (time_before(vt->vtime, *clock - lag_ns))
		vt->vtime = *clock - lag_ns;
	if (time_before(*clock + debt_ns, vt->vtime))
		vt->vtime = *clock + debt_ns;
	vt->queued_at = scx_bpf_now();
	return vt->vtime;
}

/* The clock follows the tasks that have a CPU. */
static __always_inline void advance_clock(const struct vtask *vt)
{
	u64 *clock = clock_of(vt->queue);

	if (clock && time_before(*clock, vt->vtime))
		*clock = vt->vtime;
}

/* For ops.running. */
static __always_inline void vtime_start(struct task_struct *p)
{
	struct vtask *vt = vtask_of(p);

	if (!vt)
		return;
	vt->exec_start = p->se.sum_exec_runtime;
	advance_clock(vt);
}

/*
 * Settle @used_ns between the pinned and the shared tasks of a CPU. Each are
 * due a part in proportion to their number per CPU; whoever ran owes the other
 * its part. It is time that is shared out, not slices: sleepers, which the
 * order by vtime lets in first, would use up the slices of their queue.
 */
static __always_inline void settle_credit(struct task_struct *p, u64 queue,
					  u64 used_ns)
{
	u32 class = queue / CLASS_SLOTS;
	u32 pinned = cpu_queue(class, scx_bpf_task_cpu(p));
	bool shared = queue == shared_queue(class);
	s64 *credit = bpf_map_lookup_elem(&pinned_credit, &pinned);
	u64 nr_pinned, nr_shared;

	if (!credit || queue >= NO_QUEUE)
		return;
	nr_shared = scx_bpf_dsq_nr_queued(shared_queue(class)) + shared;
	nr_pinned = scx_bpf_dsq_nr_queued(pinned) + !shared;
	nr_pinned *= nr_cpus;
	if (shared)
		*credit += used_ns * nr_pinned / (nr_pinned + nr_shared);
	else
		*credit -= used_ns * nr_shared / (nr_pinned + nr_shared);
	if (*credit > CREDIT_MAX_NS)
		*credit = CREDIT_MAX_NS;
	if (*credit < -CREDIT_MAX_NS)
		*credit = -CREDIT_MAX_NS;
}

/* For ops.stopping: charge what was used since, and return it in ns. */
static __always_inline u64 vtime_stop(struct task_struct *p)
{
	struct vtask *vt = vtask_of(p);
	u64 used;

	if (!vt)
		return 0;
	used = p->se.sum_exec_runtime - vt->exec_start;
	vt->exec_start += used;
	vt->vtime += virtual_time(p, used);
	settle_credit(p, vt->queue, used);
	charge_budget(p, used);
	return used;
}

/*
 * Let @prev continue. It takes the clock along, or the first to come after a
 * long time alone would find it deep in debt.
 */
static __always_inline bool vtime_continue(struct task_struct *prev,
					   u64 slice_ns)
{
	struct vtask *vt;

	if (!wants_cpu(prev))
		return false;
	vtime_stop(prev);
	slice_ns = granted_slice(prev, slice_ns);
	if (!slice_ns)
		return false;
	vt = vtask_of(prev);
	if (vt)
		advance_clock(vt);
	task_set_slice(prev, slice_ns);
	return true;
}

/* Whose clock @prev runs by, if it wants to continue. */
static __always_inline u64 running_queue(struct task_struct *prev)
{
	struct vtask *vt;

	if (!wants_cpu(prev))
		return NO_QUEUE;
	vt = vtask_of(prev);
	return vt ? vt->queue : NO_QUEUE;
}

/* Is @prev, due @slack_ns after its vtime, before all that wait in @queue? */
static __always_inline bool deadline_precedes(struct task_struct *prev,
					      u64 queue, u64 slack_ns)
{
	struct vtask *vt;
	u64 key;

	if (!wants_cpu(prev))
		return false;
	vtime_stop(prev);
	vt = vtask_of(prev);
	if (!vt || vt->queue != queue)
		return false;
	return !queue_head_key(queue, &key) ||
	       time_before(vt->vtime + slack_ns, key);
}

/* Is @prev due again, before all that wait in @queue? */
static __always_inline bool vtime_precedes(struct task_struct *prev, u64 queue)
{
	return deadline_precedes(prev, queue, 0);
}

/* Of the pinned and the shared queue of @class: which is due on this CPU? */
static __always_inline u64 due_queue(u32 class, s32 cpu, u64 running)
{
	u32 pinned = cpu_queue(class, cpu), shared = shared_queue(class);
	s64 *credit = bpf_map_lookup_elem(&pinned_credit, &pinned);

	if (running != pinned && !scx_bpf_dsq_nr_queued(pinned))
		return shared;
	if (running != shared && !scx_bpf_dsq_nr_queued(shared))
		return pinned;
	return credit && *credit < 0 ? shared : pinned;
}

/*
 * Give this CPU the task of @class that is due, or let @prev continue, where
 * keys are deadlines: a vtime and a slack, which is @slack_ns for @prev.
 */
static __always_inline bool deadline_dispatch(u32 class, s32 cpu,
					      struct task_struct *prev,
					      u64 slice_ns, u64 slack_ns)
{
	u64 due = due_queue(class, cpu, running_queue(prev));

	if (deadline_precedes(prev, due, slack_ns) &&
	    vtime_continue(prev, slice_ns))
		return true;
	return dsq_move_to_local(due) ||
	       dsq_move_to_local(cpu_queue(class, cpu)) ||
	       dsq_move_to_local(shared_queue(class)) ||
	       vtime_continue(prev, slice_ns);
}

/* The same where keys are vtimes. */
static __always_inline bool vtime_dispatch(u32 class, s32 cpu,
					   struct task_struct *prev,
					   u64 slice_ns)
{
	return deadline_dispatch(class, cpu, prev, slice_ns, 0);
}

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, u32);
	__type(value, u64);
} rescue_time SEC(".maps");

/* Or the clock would leap to the task's vtime, and all others become due. */
static __always_inline void forgive_debt(struct vtask *vt)
{
	u64 *clock = clock_of(vt->queue);

	if (clock && time_before(*clock, vt->vtime))
		vt->vtime = *clock;
}

/*
 * Take from @queue a task that this CPU may run and that waits too long, looking
 * from its head, or with DSQ_ITER_REV from its end.
 */
static __always_inline bool rescue_from(u64 queue, s32 cpu, u64 earliest,
					u64 direction)
{
	struct task_struct *p;
	struct vtask *vt;
	u32 looked = 0;

	bpf_for_each(scx_dsq, p, queue, direction) {
		if (looked++ >= RESCUE_DEPTH)
			break;
		vt = vtask_of(p);
		if (!vt || !time_before(vt->queued_at, earliest))
			continue;
		if (bpf_cpumask_test_cpu(cpu, p->cpus_ptr) &&
		    scx_bpf_dsq_move(LOOP_ITERATOR, p, DSQ_LOCAL, 0)) {
			forgive_debt(vt);
			return true;
		}
	}
	return false;
}

/*
 * Virtual time bounds nobody's wait: newcomers start at the clock, and can hold
 * it back. So each CPU looks now and then at the far end of its queues, where
 * those of small weight are, and serves one that waits for @starvation_ns.
 */
static __always_inline bool rescue_starved(u32 nr_classes, s32 cpu,
					   u64 starvation_ns)
{
	u64 now = scx_bpf_now(), earliest = now - starvation_ns, *next;
	u32 class, zero = 0;

	next = bpf_map_lookup_elem(&rescue_time, &zero);
	if (!next || time_before(now, *next))
		return false;
	bpf_for(class, 0, nr_classes) {
		if (rescue_from(cpu_queue(class, cpu), cpu, earliest,
				DSQ_ITER_REV) ||
		    rescue_from(shared_queue(class), cpu, earliest,
				DSQ_ITER_REV))
			return true;
	}
	*next = now + RESCUE_PERIOD_NS;
	return false;
}

#endif
