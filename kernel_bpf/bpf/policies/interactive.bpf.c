/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * interactive: short bursts first.
 *
 * Goal: low wake-up latency for tasks that run briefly and often, beside work
 * that computes without a pause.
 *
 * Algorithm: a task's burst is the CPU time it uses between two sleeps. It is
 * measured on the CPU: wall time would count the waiting of a preempted task
 * and make a victim look like background work. The deadline of a waiting task
 * is the time it came plus a patience that grows with its burst, from 0 to
 * starvation_ms at background_us; the earliest deadline goes first, so nobody
 * waits behind a newcomer for longer than that. A short-burst task that wakes
 * and finds no idle CPU preempts one that runs background work: only on a
 * wake-up and only such a CPU, or the preempted would kick others in return and
 * nobody would finish. Background tasks share by weight, through their slices.
 *
 * Loses: a program that sleeps briefly on purpose is served like a desktop;
 * throughput of the background suffers from preemption; where every task has
 * short bursts the order decides nothing.
 */
#include "burst.bpf.h"
#include "preempt.bpf.h"

/* Time a background task of default weight runs. 1000 to 100000. */
const volatile u64 slice_us = 10000;

/* Bursts from here on are background work. 200 to 50000. */
const volatile u64 background_us = 3000;

/* Longest time a background task waits for newcomers. 10 to 1500. */
const volatile u64 starvation_ms = 100;

/* CPUs looked at for one to preempt; 0 never preempts. 0 to 64. */
const volatile u32 preempt_scan_cpus = 16;

/* Who may preempt whom, see preempt.bpf.h. */
enum {
	RANK_BACKGROUND = 1,
	RANK_SHORT,
};

static __always_inline bool is_background(struct task_struct *p)
{
	return task_burst_us(p) >= background_us;
}

static __always_inline u32 rank_of(struct task_struct *p)
{
	return is_background(p) ? RANK_BACKGROUND : RANK_SHORT;
}

static __always_inline u64 deadline_ns(struct task_struct *p)
{
	return shortest_key(p, starvation_ms, background_us);
}

/* A newcomer runs until it has shown that it is background work. */
static __always_inline u64 slice_ns(struct task_struct *p)
{
	if (is_background(p))
		return weighted_slice(p, slice_us * NSEC_PER_USEC);
	return clamp_slice(background_us * NSEC_PER_USEC);
}

s32 SCX_CALLBACK(interactive_select_cpu, struct task_struct *p, s32 prev_cpu,
		 u64 wake_flags)
{
	return select_idle_cpu(p, prev_cpu, wake_flags, slice_ns(p));
}

void SCX_CALLBACK(interactive_enqueue, struct task_struct *p, u64 enq_flags)
{
	dsq_insert_vtime(p, task_queue(p, 0), slice_ns(p), deadline_ns(p),
			 enq_flags);
	if (wake_idle_cpu(p))
		return;
	if ((enq_flags & ENQ_WAKEUP) && !is_background(p))
		preempt_lower(p, RANK_SHORT, preempt_scan_cpus);
}

void SCX_CALLBACK(interactive_dispatch, s32 cpu, struct task_struct *prev)
{
	if (!wants_cpu(prev)) {
		dispatch_smaller_key(0, cpu);
		return;
	}
	burst_charge(prev);
	if (waits_before(0, cpu, deadline_ns(prev)) &&
	    dispatch_smaller_key(0, cpu))
		return;
	keep_running(prev, slice_ns(prev));
	note_rank(cpu, rank_of(prev));
}

void SCX_CALLBACK(interactive_running, struct task_struct *p)
{
	burst_start(p);
	note_rank(scx_bpf_task_cpu(p), rank_of(p));
}

void SCX_CALLBACK(interactive_stopping, struct task_struct *p, bool runnable)
{
	burst_charge(p);
	note_rank(scx_bpf_task_cpu(p), NO_RANK);
}

void SCX_CALLBACK(interactive_quiescent, struct task_struct *p, u64 deq_flags)
{
	burst_end(p, deq_flags);
}

s32 SCX_CALLBACK_SLEEPABLE(interactive_init_task, struct task_struct *p,
			   struct scx_init_task_args *args)
{
	burst_init(p);
	return 0;
}

s32 SCX_CALLBACK_SLEEPABLE(interactive_init)
{
	return create_queues(1);
}

void SCX_CALLBACK(interactive_exit, struct scx_exit_info *ei)
{
	record_exit(ei);
}

void SCX_CALLBACK(interactive_dump, struct scx_dump_ctx *dump)
{
	dump_queues(1);
}

void SCX_CALLBACK(interactive_dump_task, struct scx_dump_ctx *dump,
		  struct task_struct *p)
{
	scx_dump("burst %llu us\n", task_burst_us(p));
}

SEC(".struct_ops.link")
struct sched_ext_ops interactive = {
	.select_cpu = (void *)interactive_select_cpu,
	.enqueue = (void *)interactive_enqueue,
	.dispatch = (void *)interactive_dispatch,
	.running = (void *)interactive_running,
	.stopping = (void *)interactive_stopping,
	.quiescent = (void *)interactive_quiescent,
	.init_task = (void *)interactive_init_task,
	.init = (void *)interactive_init,
	.exit = (void *)interactive_exit,
	.dump = (void *)interactive_dump,
	.dump_task = (void *)interactive_dump_task,
	.timeout_ms = WATCHDOG_MS,
	.exit_dump_len = DUMP_BYTES,
	.name = "interactive",
};
