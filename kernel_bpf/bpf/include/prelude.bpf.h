/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Preludes: the first CPU time of a task after it woke or was forked, which it
 * gets at once. The shells and drivers that feed a batch then do not queue
 * behind it, and a new program runs far enough to be recognised.
 */
#ifndef SCHEDAGENT_PRELUDE_BPF_H
#define SCHEDAGENT_PRELUDE_BPF_H

#include "common.bpf.h"

struct prelude {
	u64 start; /* sum_exec_runtime at the last sleep */
};

struct {
	__uint(type, BPF_MAP_TYPE_TASK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, int);
	__type(value, struct prelude);
} preludes SEC(".maps");

static __always_inline struct prelude *prelude_of(struct task_struct *p)
{
	return bpf_task_storage_get(&preludes, p, NULL, 0);
}

/* For ops.init_task: a task without a record has no prelude. */
static __always_inline void prelude_init(struct task_struct *p)
{
	bpf_task_storage_get(&preludes, p, NULL,
			     BPF_LOCAL_STORAGE_GET_F_CREATE);
}

/* For ops.quiescent: a task that sleeps gets another one when it wakes. */
static __always_inline void prelude_restart(struct task_struct *p,
					    u64 deq_flags)
{
	struct prelude *prelude = prelude_of(p);

	if (prelude && (deq_flags & DEQ_SLEEP))
		prelude->start = p->se.sum_exec_runtime;
}

/* What is left of the first @prelude_us, in ns. */
static __always_inline u64 prelude_left(struct task_struct *p, u64 prelude_us)
{
	struct prelude *prelude = prelude_of(p);
	u64 length = prelude_us * NSEC_PER_USEC, used;

	if (!prelude)
		return 0;
	used = p->se.sum_exec_runtime - prelude->start;
	return used < length ? length - used : 0;
}

/* The slice of a task that first gets a prelude, @slice_ns after it. */
static __always_inline u64 prelude_or(struct task_struct *p, u64 prelude_us,
				      u64 slice_ns)
{
	u64 left = prelude_left(p, prelude_us);

	return left ? clamp_slice(left) : slice_ns;
}

#endif
