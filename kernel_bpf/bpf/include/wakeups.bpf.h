/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * How often a task wakes. A task that does not wake any more slows down as time
 * passes, so one that computes for long is not taken for a busy sleeper.
 */
#ifndef SCHEDAGENT_WAKEUPS_BPF_H
#define SCHEDAGENT_WAKEUPS_BPF_H

#include "common.bpf.h"

#define NSEC_PER_SEC 1000000000ULL

struct wakeups {
	u64 interval_ns; /* average time between two wake-ups */
	u64 last;	 /* scx_bpf_now() of the last one; 0: none yet */
};

struct {
	__uint(type, BPF_MAP_TYPE_TASK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, int);
	__type(value, struct wakeups);
} task_wakeups SEC(".maps");

static __always_inline struct wakeups *wakeups_of(struct task_struct *p)
{
	return bpf_task_storage_get(&task_wakeups, p, NULL, 0);
}

/* For ops.init_task: a task without a record never woke. */
static __always_inline void wakeups_init(struct task_struct *p)
{
	struct wakeups *wakeups;

	wakeups = bpf_task_storage_get(&task_wakeups, p, NULL,
				       BPF_LOCAL_STORAGE_GET_F_CREATE);
	if (wakeups)
		wakeups->interval_ns = NSEC_PER_SEC;
}

/* For ops.runnable. */
static __always_inline void count_wakeup(struct task_struct *p, u64 enq_flags)
{
	struct wakeups *wakeups = wakeups_of(p);
	u64 now = scx_bpf_now(), interval;

	if (!wakeups || !(enq_flags & ENQ_WAKEUP))
		return;
	interval = wakeups->last ? now - wakeups->last : NSEC_PER_SEC;
	wakeups->interval_ns = (3 * wakeups->interval_ns + interval) / 4;
	wakeups->last = now;
}

static __always_inline u64 wakeups_per_s(struct task_struct *p)
{
	struct wakeups *wakeups = wakeups_of(p);
	u64 interval, since;

	if (!wakeups || !wakeups->last)
		return 0;
	since = scx_bpf_now() - wakeups->last;
	interval = wakeups->interval_ns;
	if (interval < since)
		interval = since;
	return NSEC_PER_SEC / (interval ?: 1);
}

#endif
