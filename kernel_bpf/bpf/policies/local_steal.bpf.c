/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * local_steal: each CPU keeps its own queue, and takes from others in need.
 *
 * Goal: warm caches and no common lock, for many tasks on many CPUs.
 *
 * Algorithm: a task waits in the queue of the CPU it last ran on, ordered by
 * weighted virtual time on that CPU's own clock. A CPU with an empty queue
 * takes the first task it may run from the next queue that has one. A CPU with
 * work of its own still looks at one other queue each time, and takes from it
 * if that one is longer by steal_imbalance tasks, but never twice in a row, so
 * its own tasks get at least every second slice. A thief skips tasks it may not
 * run; with work of its own it looks at the first few only, since a crowd of
 * pinned tasks is not worth walking through.
 *
 * Loses: shares are fair on one CPU, and only roughly among CPUs; with few
 * tasks that sleep often, looking around costs more than locality gains.
 */
#include "vtime.bpf.h"

/* Time a task runs before the next in its CPU's queue. 500 to 100000. */
const volatile u64 slice_us = 10000;

/* How many tasks longer a queue must be to be stolen from. 1 to 64. */
const volatile u32 steal_imbalance = 2;

/* A task that waited this long goes next, whatever its weight. 100 to 1500. */
const volatile u64 starvation_ms = 1000;

/* How far into another queue a CPU looks that has work of its own. */
#define STEAL_DEPTH 8

/* Where a CPU looks next, and whether its last task was stolen. */
struct thief {
	u32 cursor;
	bool stole;
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, u32);
	__type(value, struct thief);
} thieves SEC(".maps");

static __always_inline u64 starvation_ns(void)
{
	return starvation_ms * NSEC_PER_MSEC;
}

static __always_inline u64 slice_ns(void)
{
	return clamp_slice(slice_us * NSEC_PER_USEC);
}

static __always_inline u64 home_queue(const struct task_struct *p)
{
	if (is_pinned(p))
		return task_queue(p, 0);
	return cpu_queue(0, scx_bpf_task_cpu(p));
}

/* An empty queue of one's own: take from whoever has something. */
static __always_inline bool steal_any(s32 cpu)
{
	u32 distance;

	bpf_for(distance, 1, nr_cpus) {
		u64 victim = cpu_queue(0, (cpu + distance) % nr_cpus);

		if (scx_bpf_dsq_nr_queued(victim) > 0 &&
		    dsq_move_to_local(victim))
			return true;
	}
	return false;
}

/*
 * Take one of the first tasks of another queue. dsq_move_to_local() would walk
 * past all tasks that are pinned there, under the queue's lock; a CPU that has
 * work of its own does not want a task that much.
 */
static __always_inline bool steal_head(u64 victim, s32 cpu)
{
	struct task_struct *p;
	u32 looked = 0;

	bpf_for_each(scx_dsq, p, victim, 0) {
		if (looked++ >= STEAL_DEPTH)
			break;
		if (bpf_cpumask_test_cpu(cpu, p->cpus_ptr) &&
		    scx_bpf_dsq_move(LOOP_ITERATOR, p, DSQ_LOCAL, 0))
			return true;
	}
	return false;
}

/* Work of one's own: look at one other queue, and even out the lengths. */
static __always_inline bool steal_surplus(s32 cpu, s32 nr_own)
{
	struct thief *thief;
	u32 zero = 0;
	u64 victim;

	thief = bpf_map_lookup_elem(&thieves, &zero);
	if (!thief || nr_cpus < 2)
		return false;
	if (thief->stole) {
		thief->stole = false;
		return false;
	}
	thief->cursor = thief->cursor % (nr_cpus - 1) + 1;
	victim = cpu_queue(0, (cpu + thief->cursor) % nr_cpus);
	if (scx_bpf_dsq_nr_queued(victim) < nr_own + (s32)steal_imbalance)
		return false;
	thief->stole = steal_head(victim, cpu);
	return thief->stole;
}

s32 SCX_CALLBACK(local_steal_select_cpu, struct task_struct *p, s32 prev_cpu,
		 u64 wake_flags)
{
	return select_idle_cpu(p, prev_cpu, wake_flags, slice_ns());
}

void SCX_CALLBACK(local_steal_enqueue, struct task_struct *p, u64 enq_flags)
{
	u64 queue = home_queue(p);
	u64 key = vtime_key(p, queue, slice_ns(), starvation_ns());

	dsq_insert_vtime(p, queue, slice_ns(), key, enq_flags);
	wake_idle_cpu(p);
}

void SCX_CALLBACK(local_steal_dispatch, s32 cpu, struct task_struct *prev)
{
	u64 own = cpu_queue(0, cpu);
	s32 nr_own = scx_bpf_dsq_nr_queued(own);

	if (rescue_starved(1, cpu, starvation_ns()))
		return;
	if ((nr_own > 0 || wants_cpu(prev)) && steal_surplus(cpu, nr_own))
		return;
	if (!vtime_precedes(prev, own) &&
	    (dsq_move_to_local(own) || steal_any(cpu)))
		return;
	vtime_continue(prev, slice_ns());
}

void SCX_CALLBACK(local_steal_running, struct task_struct *p)
{
	vtime_start(p);
}

void SCX_CALLBACK(local_steal_stopping, struct task_struct *p, bool runnable)
{
	vtime_stop(p);
}

s32 SCX_CALLBACK_SLEEPABLE(local_steal_init_task, struct task_struct *p,
			   struct scx_init_task_args *args)
{
	vtask_init(p);
	return 0;
}

s32 SCX_CALLBACK_SLEEPABLE(local_steal_init)
{
	return create_queues(1);
}

void SCX_CALLBACK(local_steal_exit, struct scx_exit_info *ei)
{
	record_exit(ei);
}

void SCX_CALLBACK(local_steal_dump, struct scx_dump_ctx *dump)
{
	dump_queues(1);
}

SEC(".struct_ops.link")
struct sched_ext_ops local_steal = {
	.select_cpu = (void *)local_steal_select_cpu,
	.enqueue = (void *)local_steal_enqueue,
	.dispatch = (void *)local_steal_dispatch,
	.running = (void *)local_steal_running,
	.stopping = (void *)local_steal_stopping,
	.init_task = (void *)local_steal_init_task,
	.init = (void *)local_steal_init,
	.exit = (void *)local_steal_exit,
	.dump = (void *)local_steal_dump,
	.timeout_ms = WATCHDOG_MS,
	.exit_dump_len = DUMP_BYTES,
	.name = "local_steal",
};
