/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * batch: few switches, warm caches.
 *
 * Goal: the most work per second from CPU-bound tasks that nobody waits for
 * one by one: compilations, encoders, simulations.
 *
 * Algorithm: long slices, and a waking task goes back to the CPU it last used
 * if that one idles, even where another core would be faster to reach. Order
 * among the waiting is by weighted virtual time, so that long slices do not
 * cost fairness. Nothing preempts; a task that is alone just continues.
 *
 * Loses: a woken task may wait for a whole slice of every CPU, so pipelines of
 * short steps, servers and desktops feel it at once.
 */
#include "placement.bpf.h"
#include "vtime.bpf.h"

/* Time a task runs undisturbed. 10000 to 100000. */
const volatile u64 slice_us = 50000;

/* A task that waited this long goes next, whatever its weight. 100 to 1500. */
const volatile u64 starvation_ms = 1000;

/* Credit kept by a task that slept: more lets sleepers in earlier. 0 to 100. */
const volatile u64 sleeper_credit_ms = 10;

static __always_inline u64 starvation_ns(void)
{
	return starvation_ms * NSEC_PER_MSEC;
}

static __always_inline u64 slice_ns(void)
{
	return clamp_slice(slice_us * NSEC_PER_USEC);
}

s32 SCX_CALLBACK(batch_select_cpu, struct task_struct *p, s32 prev_cpu,
		 u64 wake_flags)
{
	if (claim_previous(p, prev_cpu) < 0)
		return select_idle_cpu(p, prev_cpu, wake_flags, slice_ns());
	dsq_insert(p, DSQ_LOCAL, slice_ns(), 0);
	return prev_cpu;
}

void SCX_CALLBACK(batch_enqueue, struct task_struct *p, u64 enq_flags)
{
	u64 queue = task_queue(p, 0);
	u64 key = vtime_key(p, queue, sleeper_credit_ms * NSEC_PER_MSEC,
			    starvation_ns());

	dsq_insert_vtime(p, queue, slice_ns(), key, enq_flags);
	wake_idle_cpu(p);
}

void SCX_CALLBACK(batch_dispatch, s32 cpu, struct task_struct *prev)
{
	if (!rescue_starved(1, cpu, starvation_ns()))
		vtime_dispatch(0, cpu, prev, slice_ns());
}

void SCX_CALLBACK(batch_running, struct task_struct *p)
{
	vtime_start(p);
}

void SCX_CALLBACK(batch_stopping, struct task_struct *p, bool runnable)
{
	vtime_stop(p);
}

s32 SCX_CALLBACK_SLEEPABLE(batch_init_task, struct task_struct *p,
			   struct scx_init_task_args *args)
{
	vtask_init(p);
	return 0;
}

s32 SCX_CALLBACK_SLEEPABLE(batch_init)
{
	return create_queues(1);
}

void SCX_CALLBACK(batch_exit, struct scx_exit_info *ei)
{
	record_exit(ei);
}

void SCX_CALLBACK(batch_dump, struct scx_dump_ctx *dump)
{
	dump_queues(1);
}

SEC(".struct_ops.link")
struct sched_ext_ops batch = {
	.select_cpu = (void *)batch_select_cpu,
	.enqueue = (void *)batch_enqueue,
	.dispatch = (void *)batch_dispatch,
	.running = (void *)batch_running,
	.stopping = (void *)batch_stopping,
	.init_task = (void *)batch_init_task,
	.init = (void *)batch_init,
	.exit = (void *)batch_exit,
	.dump = (void *)batch_dump,
	.timeout_ms = WATCHDOG_MS,
	.exit_dump_len = DUMP_BYTES,
	.name = "batch",
};
