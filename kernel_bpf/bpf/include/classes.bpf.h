/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Classes of tasks, each with its queues. Two kinds of order:
 *
 * by time: the key is a time of day, the arrival plus a patience;
 * by vtime: the key is on the queue's own clock, see vtime.bpf.h.
 *
 * Both put tasks into vtime-ordered DSQs, so any class may have either, and a
 * task may change its class whenever it enters a queue.
 */
#ifndef SCHEDAGENT_CLASSES_BPF_H
#define SCHEDAGENT_CLASSES_BPF_H

#include "vtime.bpf.h"

#define PF_KTHREAD 0x00200000 /* include/linux/sched.h */

/* The priority of nice 0: MAX_RT_PRIO + NICE_WIDTH / 2 of the kernel. */
#define NICE_0_PRIO 120

static __always_inline bool is_kthread(const struct task_struct *p)
{
	return p->flags & PF_KTHREAD;
}

static __always_inline s32 task_nice(const struct task_struct *p)
{
	return p->static_prio - NICE_0_PRIO;
}

static __always_inline u64 task_runtime_ms(const struct task_struct *p)
{
	return p->se.sum_exec_runtime / NSEC_PER_MSEC;
}

/* How many tasks of @class wait for this CPU. */
static __always_inline s32 class_waiting(u32 class, s32 cpu)
{
	return scx_bpf_dsq_nr_queued(shared_queue(class)) +
	       scx_bpf_dsq_nr_queued(cpu_queue(class, cpu));
}

/*
 * The task enters a queue that is ordered by time: note when, for the rescue,
 * and that no clock of vtime is its own. Returns @key.
 */
static __always_inline u64 timed_key(struct task_struct *p, u64 key)
{
	struct vtask *vt = vtask_of(p);

	if (vt) {
		vt->queue = NO_QUEUE;
		vt->queued_at = scx_bpf_now();
	}
	return key;
}

/*
 * Serve one that waits for @starvation_ns, of whatever class. The first in a
 * queue have waited longest, unless the order is by vtime (@by_vtime: a bit for
 * each such class): then those of small weight are at its end.
 */
static __always_inline bool rescue_classes(u32 nr_classes, u32 by_vtime,
					   s32 cpu, u64 starvation_ns)
{
	u64 now = scx_bpf_now(), earliest = now - starvation_ns, *next;
	u32 class, zero = 0;

	next = bpf_map_lookup_elem(&rescue_time, &zero);
	if (!next || time_before(now, *next))
		return false;
	bpf_for(class, 0, nr_classes) {
		u64 pinned = cpu_queue(class, cpu);
		u64 shared = shared_queue(class);

		if (rescue_from(pinned, cpu, earliest, 0) ||
		    rescue_from(shared, cpu, earliest, 0))
			return true;
		if (!(by_vtime & (1U << class)))
			continue;
		if (rescue_from(pinned, cpu, earliest, DSQ_ITER_REV) ||
		    rescue_from(shared, cpu, earliest, DSQ_ITER_REV))
			return true;
	}
	*next = now + RESCUE_PERIOD_NS;
	return false;
}

#endif
