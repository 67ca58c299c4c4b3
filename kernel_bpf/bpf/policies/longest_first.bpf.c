/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * longest_first: what takes longest starts first.
 *
 * Goal: the shortest makespan of a batch whose longest task would otherwise
 * run on alone while the other CPUs have nothing left to do.
 *
 * Algorithm: the waiting task with the most CPU time still to come goes first.
 * How much comes is the time that tasks of the same identity took in earlier
 * runs (task_history) minus what this one has used. The key of a waiting task
 * is the time it came plus a patience, from 0 for the longest to starvation_ms
 * for one that is nearly done: a task that has waited that long beats every
 * newcomer. A task that woke or was forked first gets a short prelude at once,
 * so that the shells and drivers that feed the batch do not queue behind it,
 * and a new program runs far enough to be recognised.
 *
 * Loses: without history it is a plain round robin; where all tasks are alike
 * it changes nothing; short tasks are late by design; weights only scale the
 * slices. One task very much longer than the rest makes the rest look alike.
 */
#include "queues.bpf.h"
#include "history.bpf.h"

/* Time a task of default weight runs before the order is looked at. */
const volatile u64 slice_us = 10000;

/* CPU time served at once after a wake-up or fork. 0 to 20000. */
const volatile u64 prelude_us = 2000;

/* CPU time expected of a task that no earlier run knows. 0 to 600000. */
const volatile u64 unknown_ms = 100;

/* Longest wait before a task beats every newcomer. 100 to 3000. */
const volatile u64 starvation_ms = 1500;

static __always_inline u64 slice_ns(struct task_struct *p)
{
	u64 slice = weighted_slice(p, slice_us * NSEC_PER_USEC);

	return prelude_or(p, prelude_us, slice);
}

static __always_inline u64 key_of(struct task_struct *p)
{
	return longest_key(p, prelude_us, starvation_ms, unknown_ms);
}

s32 SCX_CALLBACK(longest_first_select_cpu, struct task_struct *p, s32 prev_cpu,
		 u64 wake_flags)
{
	return select_idle_cpu(p, prev_cpu, wake_flags, slice_ns(p));
}

void SCX_CALLBACK(longest_first_enqueue, struct task_struct *p, u64 enq_flags)
{
	dsq_insert_vtime(p, task_queue(p, 0), slice_ns(p), key_of(p),
			 enq_flags);
	wake_idle_cpu(p);
}

void SCX_CALLBACK(longest_first_dispatch, s32 cpu, struct task_struct *prev)
{
	if (!wants_cpu(prev)) {
		dispatch_smaller_key(0, cpu);
		return;
	}
	if (!waits_before(0, cpu, key_of(prev)) ||
	    !dispatch_smaller_key(0, cpu))
		keep_running(prev, slice_ns(prev));
}

void SCX_CALLBACK(longest_first_quiescent, struct task_struct *p, u64 deq_flags)
{
	prelude_restart(p, deq_flags);
}

s32 SCX_CALLBACK_SLEEPABLE(longest_first_init_task, struct task_struct *p,
			   struct scx_init_task_args *args)
{
	prelude_init(p);
	identity_init(p);
	return 0;
}

s32 SCX_CALLBACK_SLEEPABLE(longest_first_init)
{
	return create_queues(1);
}

void SCX_CALLBACK(longest_first_exit, struct scx_exit_info *ei)
{
	record_exit(ei);
}

void SCX_CALLBACK(longest_first_dump, struct scx_dump_ctx *dump)
{
	scx_dump("longest remaining time seen: %llu ns\n", longest_ns);
	dump_queues(1);
}

void SCX_CALLBACK(longest_first_dump_task, struct scx_dump_ctx *dump,
		  struct task_struct *p)
{
	scx_dump("%llu ns still to come, used %llu ns\n",
		 remaining_ns(p, unknown_ms), p->se.sum_exec_runtime);
}

SEC(".struct_ops.link")
struct sched_ext_ops longest_first = {
	.select_cpu = (void *)longest_first_select_cpu,
	.enqueue = (void *)longest_first_enqueue,
	.dispatch = (void *)longest_first_dispatch,
	.quiescent = (void *)longest_first_quiescent,
	.init_task = (void *)longest_first_init_task,
	.init = (void *)longest_first_init,
	.exit = (void *)longest_first_exit,
	.dump = (void *)longest_first_dump,
	.dump_task = (void *)longest_first_dump_task,
	.timeout_ms = WATCHDOG_MS,
	.exit_dump_len = DUMP_BYTES,
	.name = "longest_first",
};
