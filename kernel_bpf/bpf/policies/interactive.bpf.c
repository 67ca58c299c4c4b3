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
 * wake-up and only such a CPU, or the preempted would kick in their turn and
 * nobody would finish. Background tasks share by weight, through their slices.
 *
 * Loses: a program that sleeps briefly on purpose is served like a desktop;
 * throughput of the background suffers from preemption; where every task has
 * short bursts the order decides nothing.
 */
#include "queues.bpf.h"

/* Time a background task of default weight runs. 1000 to 100000. */
const volatile u64 slice_us = 10000;

/* Bursts from here on are background work. 200 to 50000. */
const volatile u64 background_us = 3000;

/* Longest time a background task waits for newcomers. 10 to 1500. */
const volatile u64 starvation_ms = 100;

/* CPUs looked at for one to preempt; 0 never preempts. 0 to 64. */
const volatile u32 preempt_scan_cpus = 16;

struct burst {
	u64 average_ns; /* of finished bursts */
	u64 current_ns; /* used since the last sleep */
	u64 exec_start; /* sum_exec_runtime when it was last given a CPU */
};

struct {
	__uint(type, BPF_MAP_TYPE_TASK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, int);
	__type(value, struct burst);
} bursts SEC(".maps");

/* CPUs that run background work and that nobody has asked to stop yet. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, MAX_CPUS);
	__type(key, u32);
	__type(value, bool);
} runs_background SEC(".maps");

static __always_inline bool *background_flag(u32 cpu)
{
	return bpf_map_lookup_elem(&runs_background, &cpu);
}

static __always_inline struct burst *burst_of(struct task_struct *p)
{
	return bpf_task_storage_get(&bursts, p, NULL, 0);
}

static __always_inline u64 background_ns(void)
{
	return background_us * NSEC_PER_USEC;
}

/* What to expect of the task: its habit, or more if it already shows more. */
static __always_inline u64 burst_ns(struct task_struct *p)
{
	struct burst *burst = burst_of(p);
	u64 length;

	if (!burst)
		return background_ns();
	length = burst->average_ns;
	if (length < burst->current_ns)
		length = burst->current_ns;
	return length < background_ns() ? length : background_ns();
}

static __always_inline bool is_background(struct task_struct *p)
{
	return burst_ns(p) >= background_ns();
}

static __always_inline u64 deadline_ns(struct task_struct *p)
{
	return scx_bpf_now() +
	       starvation_ms * NSEC_PER_USEC * burst_ns(p) / background_us;
}

/* A newcomer runs until it has shown that it is background work. */
static __always_inline u64 slice_ns(struct task_struct *p)
{
	if (is_background(p))
		return weighted_slice(p, slice_us * NSEC_PER_USEC);
	return clamp_slice(background_ns());
}

/* Count the CPU time used since the last time into the current burst. */
static __always_inline void account(struct task_struct *p)
{
	struct burst *burst = burst_of(p);

	if (!burst)
		return;
	burst->current_ns += p->se.sum_exec_runtime - burst->exec_start;
	burst->exec_start = p->se.sum_exec_runtime;
}

/* The task has @cpu from now on: can it be preempted? */
static __always_inline void note_running(struct task_struct *p, u32 cpu)
{
	bool *background = background_flag(cpu);

	if (background)
		*background = is_background(p);
}

/* Ask a CPU to give up its background work, and ask each only once. */
static __always_inline bool preempt_background(u32 cpu)
{
	bool *background = background_flag(cpu);

	if (!background || !*background)
		return false;
	*background = false;
	scx_bpf_kick_cpu(cpu, KICK_PREEMPT);
	return true;
}

/* A short-burst task woke: find it a CPU, nearest number to its last first. */
static __always_inline void preempt_for(struct task_struct *p)
{
	u32 first = scx_bpf_task_cpu(p), step;

	bpf_for(step, 0, preempt_scan_cpus) {
		u32 cpu = (first + step) % nr_cpus;

		if (step >= nr_cpus)
			break;
		if (bpf_cpumask_test_cpu(cpu, p->cpus_ptr) &&
		    preempt_background(cpu))
			break;
	}
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
		preempt_for(p);
}

void SCX_CALLBACK(interactive_dispatch, s32 cpu, struct task_struct *prev)
{
	if (!wants_cpu(prev)) {
		dispatch_smaller_key(0, cpu);
		return;
	}
	account(prev);
	if (waits_before(0, cpu, deadline_ns(prev)) &&
	    dispatch_smaller_key(0, cpu))
		return;
	keep_running(prev, slice_ns(prev));
	note_running(prev, cpu);
}

void SCX_CALLBACK(interactive_running, struct task_struct *p)
{
	struct burst *burst = burst_of(p);

	if (burst)
		burst->exec_start = p->se.sum_exec_runtime;
	note_running(p, scx_bpf_task_cpu(p));
}

void SCX_CALLBACK(interactive_stopping, struct task_struct *p, bool runnable)
{
	bool *background = background_flag(scx_bpf_task_cpu(p));

	account(p);
	if (background)
		*background = false;
}

/* The task sleeps: its burst is over. One long burst is forgotten in a few. */
void SCX_CALLBACK(interactive_quiescent, struct task_struct *p, u64 deq_flags)
{
	struct burst *burst = burst_of(p);

	if (!burst || !(deq_flags & DEQ_SLEEP))
		return;
	burst->average_ns = (3 * burst->average_ns + burst->current_ns) / 4;
	burst->current_ns = 0;
}

s32 SCX_CALLBACK_SLEEPABLE(interactive_init_task, struct task_struct *p,
			   struct scx_init_task_args *args)
{
	bpf_task_storage_get(&bursts, p, NULL, BPF_LOCAL_STORAGE_GET_F_CREATE);
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
	scx_dump("burst %llu ns\n", burst_ns(p));
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
