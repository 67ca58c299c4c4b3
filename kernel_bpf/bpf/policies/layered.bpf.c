/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * layered: classes of tasks, each with its own share and slice.
 *
 * Goal: known kinds of work side by side, each with the treatment it needs:
 * a server beside a build, a build's driver beside its compilers.
 *
 * Algorithm: the loader sorts tasks into four classes, by the identity of
 * their program. Each class has a virtual time that grows by the CPU time its
 * tasks use, divided by the class's share; a CPU serves the class with the
 * smallest that has a task for it, and within the class the task with the
 * smallest weighted virtual time. A class that had nothing to do starts again
 * beside the others, and a task that waited for starvation_ms is served next,
 * so a small share is slow but never stands still.
 *
 * Loses: with wrong or no classes it is a slower fair queue; classes do not
 * preempt each other, a short-slice class waits for the end of a slice of the
 * others.
 */
#include "known_class.bpf.h"
#include "shares.bpf.h"

#define NR_CLASSES 4

/* Relative CPU share of each class. 1 to 1000. */
const volatile u64 share_0 = 100;
const volatile u64 share_1 = 300;
const volatile u64 share_2 = 100;
const volatile u64 share_3 = 25;

/* Slice of each class. 500 to 100000. */
const volatile u64 slice_us_0 = 10000;
const volatile u64 slice_us_1 = 3000;
const volatile u64 slice_us_2 = 20000;
const volatile u64 slice_us_3 = 20000;

/* A task that waited this long goes next, whatever its share. 100 to 1500. */
const volatile u64 starvation_ms = 1000;

static __always_inline u64 starvation_ns(void)
{
	return starvation_ms * NSEC_PER_MSEC;
}

/* Tasks of no known class are class 0; numbers beyond the last are the last. */
static __always_inline u32 class_of(struct task_struct *p)
{
	u32 class = known_class(p);

	if (class == UNKNOWN_CLASS)
		return 0;
	return class < NR_CLASSES ? class : NR_CLASSES - 1;
}

static __always_inline u64 class_share(u32 class)
{
	switch (class) {
	case 0:
		return share_0;
	case 1:
		return share_1;
	case 2:
		return share_2;
	default:
		return share_3;
	}
}

static __always_inline u64 class_slice(u32 class)
{
	u64 slice_us;

	switch (class) {
	case 0:
		slice_us = slice_us_0;
		break;
	case 1:
		slice_us = slice_us_1;
		break;
	case 2:
		slice_us = slice_us_2;
		break;
	default:
		slice_us = slice_us_3;
	}
	return clamp_slice(slice_us * NSEC_PER_USEC);
}

/* Charge the task and its class for the CPU time used since the last time. */
static __always_inline void charge(struct task_struct *p)
{
	u32 class = class_of(p);

	charge_class(class, vtime_stop(p), class_share(class));
}

/*
 * The class that is due on this CPU, see next_class(). Global, not inlined: the
 * kernel verifies it once, not for each of the ways that lead here.
 */
__noinline u32 due_class(s32 cpu, u32 tried, u32 running)
{
	return next_class(NR_CLASSES, cpu, tried, running);
}

/* Give this CPU a waiting task of @class. Global for the same reason. */
__noinline bool serve_class(u32 class, s32 cpu)
{
	return vtime_dispatch(class, cpu, NULL, 0);
}

/* Serve the class that is due; if it has no task for this CPU, the next. */
static __always_inline void dispatch_class(s32 cpu, struct task_struct *prev)
{
	u32 round, class, tried = 0, running = NO_CLASS;

	if (wants_cpu(prev)) {
		charge(prev);
		running = class_of(prev);
	}
	bpf_for(round, 0, NR_CLASSES) {
		class = due_class(cpu, tried, running);
		if (class >= NR_CLASSES)
			return;
		if (class == running) {
			vtime_dispatch(class, cpu, prev, class_slice(class));
			advance_class_clock(class);
			return;
		}
		if (serve_class(class, cpu)) {
			advance_class_clock(class);
			return;
		}
		tried |= 1U << class;
	}
}

s32 SCX_CALLBACK(layered_select_cpu, struct task_struct *p, s32 prev_cpu,
		 u64 wake_flags)
{
	return select_idle_cpu(p, prev_cpu, wake_flags,
			       class_slice(class_of(p)));
}

void SCX_CALLBACK(layered_enqueue, struct task_struct *p, u64 enq_flags)
{
	u32 class = class_of(p);
	u64 queue = task_queue(p, class), slice = class_slice(class);
	u64 key = vtime_key(p, queue, slice, starvation_ns());

	refresh_class(class);
	dsq_insert_vtime(p, queue, slice, key, enq_flags);
	wake_idle_cpu(p);
}

void SCX_CALLBACK(layered_dispatch, s32 cpu, struct task_struct *prev)
{
	if (!rescue_starved(NR_CLASSES, cpu, starvation_ns()))
		dispatch_class(cpu, prev);
}

void SCX_CALLBACK(layered_running, struct task_struct *p)
{
	vtime_start(p);
}

void SCX_CALLBACK(layered_stopping, struct task_struct *p, bool runnable)
{
	charge(p);
}

s32 SCX_CALLBACK_SLEEPABLE(layered_init_task, struct task_struct *p,
			   struct scx_init_task_args *args)
{
	vtask_init(p);
	identity_init(p);
	return 0;
}

s32 SCX_CALLBACK_SLEEPABLE(layered_init)
{
	return create_queues(NR_CLASSES);
}

void SCX_CALLBACK(layered_exit, struct scx_exit_info *ei)
{
	record_exit(ei);
}

void SCX_CALLBACK(layered_dump, struct scx_dump_ctx *dump)
{
	dump_class_vtimes(NR_CLASSES);
	dump_queues(NR_CLASSES);
}

SEC(".struct_ops.link")
struct sched_ext_ops layered = {
	.select_cpu = (void *)layered_select_cpu,
	.enqueue = (void *)layered_enqueue,
	.dispatch = (void *)layered_dispatch,
	.running = (void *)layered_running,
	.stopping = (void *)layered_stopping,
	.init_task = (void *)layered_init_task,
	.init = (void *)layered_init,
	.exit = (void *)layered_exit,
	.dump = (void *)layered_dump,
	.timeout_ms = WATCHDOG_MS,
	.exit_dump_len = DUMP_BYTES,
	.name = "layered",
};
