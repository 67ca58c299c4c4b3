/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * fifo: first come, first served.
 *
 * Goal: the least work per decision, and no CPU idle while a task waits.
 *
 * Algorithm: a waking task takes an idle CPU at once. Otherwise it joins the
 * end of one queue that all CPUs serve, for a fixed slice. Tasks pinned to one
 * CPU wait in a queue of that CPU. Queues are ordered by the time of arrival, so
 * a CPU can see which of the two has the task that came first.
 *
 * Loses: weights and nice levels mean nothing here; a task that sleeps often
 * waits behind every CPU-bound one; on large machines the single queue becomes
 * a contended lock, and tasks lose their warm caches.
 */
#include "queues.bpf.h"

/* Time a task runs before it goes to the end of the queue. 500 to 100000. */
const volatile u64 slice_us = 10000;

static __always_inline u64 slice_ns(void)
{
	return clamp_slice(slice_us * NSEC_PER_USEC);
}

s32 SCX_CALLBACK(fifo_select_cpu, struct task_struct *p, s32 prev_cpu,
		 u64 wake_flags)
{
	return select_idle_cpu(p, prev_cpu, wake_flags, slice_ns());
}

void SCX_CALLBACK(fifo_enqueue, struct task_struct *p, u64 enq_flags)
{
	dsq_insert_vtime(p, task_queue(p, 0), slice_ns(), scx_bpf_now(),
			 enq_flags);
	wake_idle_cpu(p);
}

void SCX_CALLBACK(fifo_dispatch, s32 cpu, struct task_struct *prev)
{
	if (!dispatch_smaller_key(0, cpu))
		keep_running(prev, slice_ns());
}

s32 SCX_CALLBACK_SLEEPABLE(fifo_init)
{
	return create_queues(1);
}

void SCX_CALLBACK(fifo_exit, struct scx_exit_info *ei)
{
	record_exit(ei);
}

void SCX_CALLBACK(fifo_dump, struct scx_dump_ctx *dump)
{
	dump_queues(1);
}

SEC(".struct_ops.link")
struct sched_ext_ops fifo = {
	.select_cpu = (void *)fifo_select_cpu,
	.enqueue = (void *)fifo_enqueue,
	.dispatch = (void *)fifo_dispatch,
	.init = (void *)fifo_init,
	.exit = (void *)fifo_exit,
	.dump = (void *)fifo_dump,
	.timeout_ms = WATCHDOG_MS,
	.exit_dump_len = DUMP_BYTES,
	.name = "fifo",
};
