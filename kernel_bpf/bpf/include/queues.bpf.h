/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The queues that the policies share: for each class one DSQ for all CPUs, and
 * one per CPU for tasks that may run nowhere else. Pinned tasks in a shared
 * queue would be skipped one by one, under its lock, by every other CPU.
 *
 * Pinned means one CPU. A task that is bound to some of many CPUs waits in the
 * shared queue, where each CPU of its mask finds it at once; the CPUs outside
 * of the mask skip it there, so a crowd of such tasks costs them as a crowd of
 * pinned ones would.
 *
 * A policy with a single queue uses class 0. The id of a DSQ is also its index
 * in tables, so it needs no lookup and never has bit 63 set.
 *
 * CPUs that come or go are left to the kernel: a policy without cpu_online and
 * cpu_offline is ended with a hint to restart it (SCX_ECODE_ACT_RESTART), all
 * tasks go back to the default class, and the loader attaches afresh.
 */
#ifndef SCHEDAGENT_QUEUES_BPF_H
#define SCHEDAGENT_QUEUES_BPF_H

#include "common.bpf.h"

#ifndef SCHEDAGENT_BANDWIDTH_BPF_H
/* Without limits of cgroups every slice is granted. */
#define granted_slice(p, slice_ns) (slice_ns)
#endif

#define MAX_CPUS    512
#define MAX_CLASSES 4
#define CLASS_SLOTS (MAX_CPUS + 1)
#define NR_QUEUES   (MAX_CLASSES * CLASS_SLOTS)

u32 nr_cpus = 1;

static __always_inline u64 cpu_queue(u32 class, s32 cpu)
{
	return class * CLASS_SLOTS + (u32)cpu;
}

static __always_inline u64 shared_queue(u32 class)
{
	return class * CLASS_SLOTS + MAX_CPUS;
}

static __always_inline bool is_pinned(const struct task_struct *p)
{
	return p->nr_cpus_allowed == 1;
}

/* Where a task of @class waits. */
static __always_inline u64 task_queue(const struct task_struct *p, u32 class)
{
	if (is_pinned(p))
		return cpu_queue(class, bpf_cpumask_first(p->cpus_ptr));
	return shared_queue(class);
}

static __always_inline s32 create_queue(u64 queue)
{
	s32 error = scx_bpf_create_dsq(queue, -1);

	if (error)
		scx_error("cannot create queue %llu: error %d", queue, error);
	return error;
}

/* For ops.init: create the queues of classes 0 to @nr_classes - 1. */
static __always_inline s32 create_queues(u32 nr_classes)
{
	s32 class, cpu, error;

	nr_cpus = scx_bpf_nr_cpu_ids();
	if (nr_cpus > MAX_CPUS) {
		scx_error("%u CPUs, but queues for only %u", nr_cpus, MAX_CPUS);
		return -E2BIG;
	}
	bpf_for(class, 0, nr_classes) {
		error = create_queue(shared_queue(class));
		if (error)
			return error;
		bpf_for(cpu, 0, nr_cpus) {
			error = create_queue(cpu_queue(class, cpu));
			if (error)
				return error;
		}
	}
	return 0;
}

/*
 * Claim an idle CPU for a waking task and hand it over at once. Returns a CPU
 * the task may use in any case.
 */
static __always_inline s32 select_idle_cpu(struct task_struct *p, s32 prev_cpu,
					   u64 wake_flags, u64 slice_ns)
{
	s32 cpu = select_cpu_and(p, prev_cpu, wake_flags, p->cpus_ptr);

	if (cpu < 0)
		return prev_cpu;
	slice_ns = granted_slice(p, slice_ns);
	if (slice_ns)
		dsq_insert(p, DSQ_LOCAL, slice_ns, 0);
	return cpu;
}

/* A task was put in a queue: let a CPU that idles come and fetch it. */
static __always_inline bool wake_idle_cpu(const struct task_struct *p)
{
	s32 cpu = scx_bpf_pick_idle_cpu(p->cpus_ptr, 0);

	if (cpu < 0)
		return false;
	scx_bpf_kick_cpu(cpu, KICK_IDLE);
	return true;
}

/*
 * For ops.dispatch: does @prev want to continue? It is in no queue then, so the
 * policy has to compare it with those that are: otherwise two tasks on one CPU
 * alternate strictly whatever their weights or keys.
 */
static __always_inline bool wants_cpu(const struct task_struct *prev)
{
	return prev && (prev->scx.flags & TASK_QUEUED);
}

/* Let @prev continue, if it wants to and may. */
static __always_inline bool keep_running(struct task_struct *prev, u64 slice_ns)
{
	if (!wants_cpu(prev))
		return false;
	slice_ns = granted_slice(prev, slice_ns);
	if (!slice_ns)
		return false;
	task_set_slice(prev, slice_ns);
	return true;
}

/* The key of the first task in a vtime-ordered queue, if there is one. */
static __always_inline bool queue_head_key(u64 queue, u64 *key)
{
	struct task_struct *head;

	bpf_for_each(scx_dsq, head, queue, 0) {
		*key = head->scx.dsq_vtime;
		return true;
	}
	return false;
}

/* Does any task in @queue go before @key? */
static __always_inline bool queue_has_before(u64 queue, u64 key)
{
	u64 head;

	return queue_head_key(queue, &head) && time_before(head, key);
}

/* Does any task of @class that waits for this CPU go before @key? */
static __always_inline bool waits_before(u32 class, s32 cpu, u64 key)
{
	return queue_has_before(cpu_queue(class, cpu), key) ||
	       queue_has_before(shared_queue(class), key);
}

/* Move one task to this CPU, from the queue whose first key is the smaller. */
static __always_inline bool dispatch_smaller_key(u32 class, s32 cpu)
{
	u64 pinned = cpu_queue(class, cpu), shared = shared_queue(class);
	u64 pinned_key, shared_key;

	if (!queue_head_key(pinned, &pinned_key))
		return dsq_move_to_local(shared);
	if (queue_head_key(shared, &shared_key) &&
	    time_before(shared_key, pinned_key) && dsq_move_to_local(shared))
		return true;
	return dsq_move_to_local(pinned) || dsq_move_to_local(shared);
}

/* For ops.dump: what waits where. */
static __always_inline void dump_queues(u32 nr_classes)
{
	s32 class, cpu;

	bpf_for(class, 0, nr_classes) {
		scx_dump("class %d: %d tasks in the shared queue\n", class,
			 scx_bpf_dsq_nr_queued(shared_queue(class)));
		bpf_for(cpu, 0, nr_cpus) {
			s32 nr = scx_bpf_dsq_nr_queued(cpu_queue(class, cpu));

			if (nr > 0)
				scx_dump("  %d in the queue of CPU %d\n", nr,
					 cpu);
		}
	}
}

#endif
