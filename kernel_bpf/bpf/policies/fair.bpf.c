/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * fair: every task gets CPU time in proportion to its weight.
 *
 * Goal: a simple, predictable baseline that respects nice levels and the limits
 * of cgroups (cpu.weight, cpu.idle and cpu.max of every level), without the
 * default scheduler's placement and preemption rules.
 *
 * Algorithm: weighted virtual time. A task's vtime grows by the CPU time it
 * used, divided by its effective weight: its part of its cgroup, times the part
 * of the cgroup in its parent, and so on. The waiting task with the smallest
 * goes first. A task that slept keeps a credit of one slice, so that it runs
 * soon without taking over. A task that waited for starvation_ms is served
 * next. Pinned tasks wait in a queue of their CPU. A slice is taken from the
 * budgets of the cgroup and of all above it; a task that finds one empty waits
 * until a timer refills it.
 *
 * Loses: a woken task does not preempt, it waits for the end of a slice; all
 * CPUs share one queue, which costs cache warmth and, on large machines, lock
 * contention; each wake-up and switch walks the levels of cgroups.
 */
#include "bandwidth.bpf.h"
#include "vtime.bpf.h"

/* Time a task runs before the next one does. 500 to 100000. */
const volatile u64 slice_us = 5000;

/* A task that waited this long goes next, whatever its weight. 100 to 1500. */
const volatile u64 starvation_ms = 1000;

static __always_inline u64 starvation_ns(void)
{
	return starvation_ms * NSEC_PER_MSEC;
}

static __always_inline u64 slice_ns(struct task_struct *p)
{
	return lighter_slice(p, clamp_slice(slice_us * NSEC_PER_USEC));
}

s32 SCX_CALLBACK(fair_select_cpu, struct task_struct *p, s32 prev_cpu,
		 u64 wake_flags)
{
	return select_idle_cpu(p, prev_cpu, wake_flags, slice_ns(p));
}

void SCX_CALLBACK(fair_enqueue, struct task_struct *p, u64 enq_flags)
{
	u64 queue = task_queue(p, 0), slice = slice_ns(p);
	u64 key = vtime_key(p, queue, slice, starvation_ns());

	join_queue(p, queue, slice, key, enq_flags);
}

void SCX_CALLBACK(fair_dispatch, s32 cpu, struct task_struct *prev)
{
	if (!rescue_starved(1, cpu, starvation_ns()))
		vtime_dispatch(0, cpu, prev, prev ? slice_ns(prev) : 0);
}

void SCX_CALLBACK(fair_runnable, struct task_struct *p, u64 enq_flags)
{
	cgroup_runnable(p);
}

void SCX_CALLBACK(fair_running, struct task_struct *p)
{
	vtime_start(p);
}

void SCX_CALLBACK(fair_stopping, struct task_struct *p, bool runnable)
{
	vtime_stop(p);
}

void SCX_CALLBACK(fair_quiescent, struct task_struct *p, u64 deq_flags)
{
	cgroup_quiescent(p);
	return_budget(p);
}

s32 SCX_CALLBACK_SLEEPABLE(fair_init_task, struct task_struct *p,
			   struct scx_init_task_args *args)
{
	vtask_init(p);
	cgroup_task_init(p);
	return 0;
}

s32 SCX_CALLBACK_SLEEPABLE(fair_init)
{
	return create_limits() ?: create_queues(1);
}

void SCX_CALLBACK(fair_exit, struct scx_exit_info *ei)
{
	record_exit(ei);
}

void SCX_CALLBACK(fair_dump, struct scx_dump_ctx *dump)
{
	dump_queues(1);
}

LIMIT_CALLBACKS

SEC(".struct_ops.link")
struct sched_ext_ops fair = {
	.select_cpu = (void *)fair_select_cpu,
	.enqueue = (void *)fair_enqueue,
	.dispatch = (void *)fair_dispatch,
	.runnable = (void *)fair_runnable,
	.running = (void *)fair_running,
	.stopping = (void *)fair_stopping,
	.quiescent = (void *)fair_quiescent,
	.init_task = (void *)fair_init_task,
	.init = (void *)fair_init,
	.exit = (void *)fair_exit,
	.dump = (void *)fair_dump,
	LIMIT_OPS,
	.timeout_ms = WATCHDOG_MS,
	.exit_dump_len = DUMP_BYTES,
	.name = "fair",
};
