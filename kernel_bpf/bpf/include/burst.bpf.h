/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Bursts: the CPU time a task uses between two sleeps. It is measured on the
 * CPU: wall time would count the waiting of a preempted task.
 */
#ifndef SCHEDAGENT_BURST_BPF_H
#define SCHEDAGENT_BURST_BPF_H

#include "common.bpf.h"

struct burst {
	u64 average_ns; /* of finished bursts */
	u64 current_ns; /* used since the last sleep */
	u64 exec_start; /* sum_exec_runtime when burst_start() saw it last */
};

struct {
	__uint(type, BPF_MAP_TYPE_TASK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, int);
	__type(value, struct burst);
} bursts SEC(".maps");

static __always_inline struct burst *burst_of(struct task_struct *p)
{
	return bpf_task_storage_get(&bursts, p, NULL, 0);
}

/* For ops.init_task: a task without a record has bursts of length 0. */
static __always_inline void burst_init(struct task_struct *p)
{
	bpf_task_storage_get(&bursts, p, NULL, BPF_LOCAL_STORAGE_GET_F_CREATE);
}

/* The task used its CPU for @used_ns. */
static __always_inline void burst_add(struct task_struct *p, u64 used_ns)
{
	struct burst *burst = burst_of(p);

	if (burst)
		burst->current_ns += used_ns;
}

/* For ops.running, in a policy without vtime_stop(), which returns the same. */
static __always_inline void burst_start(struct task_struct *p)
{
	struct burst *burst = burst_of(p);

	if (burst)
		burst->exec_start = p->se.sum_exec_runtime;
}

/* Add what the task used since burst_start(), or since the last time. */
static __always_inline void burst_charge(struct task_struct *p)
{
	struct burst *burst = burst_of(p);

	if (!burst)
		return;
	burst->current_ns += p->se.sum_exec_runtime - burst->exec_start;
	burst->exec_start = p->se.sum_exec_runtime;
}

/* For ops.quiescent. One long burst is forgotten in a few short ones. */
static __always_inline void burst_end(struct task_struct *p, u64 deq_flags)
{
	struct burst *burst = burst_of(p);

	if (!burst || !(deq_flags & DEQ_SLEEP))
		return;
	burst->average_ns = (3 * burst->average_ns + burst->current_ns) / 4;
	burst->current_ns = 0;
}

/* CPU time since the task slept, in us. */
static __always_inline u64 current_burst_us(struct task_struct *p)
{
	struct burst *burst = burst_of(p);

	return burst ? burst->current_ns / NSEC_PER_USEC : 0;
}

/* What to expect of the task: its habit, or more if it already shows more. */
static __always_inline u64 task_burst_us(struct task_struct *p)
{
	struct burst *burst = burst_of(p);
	u64 length;

	if (!burst)
		return 0;
	length = burst->average_ns;
	if (length < burst->current_ns)
		length = burst->current_ns;
	return length / NSEC_PER_USEC;
}

/*
 * How long a task waits for those of shorter bursts, in ns: up to @patience_ms,
 * in proportion to its burst, which counts up to @long_us.
 */
static __always_inline u64 burst_patience(struct task_struct *p,
					  u64 patience_ms, u64 long_us)
{
	u64 length = task_burst_us(p);

	if (length >= long_us)
		return patience_ms * NSEC_PER_MSEC;
	return patience_ms * NSEC_PER_MSEC * length / long_us;
}

/* When a task is due that comes now, the shortest bursts first. */
static __always_inline u64 shortest_key(struct task_struct *p, u64 patience_ms,
					u64 long_us)
{
	return scx_bpf_now() + burst_patience(p, patience_ms, long_us);
}

/*
 * By how much the deadline of a task lies behind its vtime, in ns: the CPU time
 * since it slept, up to @slack_us. Who has just woken goes first.
 */
static __always_inline u64 burst_slack(struct task_struct *p, u64 slack_us)
{
	u64 length = current_burst_us(p);

	return (length < slack_us ? length : slack_us) * NSEC_PER_USEC;
}

#endif
