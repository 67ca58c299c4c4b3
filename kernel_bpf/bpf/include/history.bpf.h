/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * How much CPU time a task is still going to use, from what tasks of the same
 * identity used in earlier runs.
 */
#ifndef SCHEDAGENT_HISTORY_BPF_H
#define SCHEDAGENT_HISTORY_BPF_H

#include "identity.bpf.h"
#include "prelude.bpf.h"

#define HISTORY_MAX 4096

/* Filled by the loader: identity -> CPU time in ns a task is expected to use. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, HISTORY_MAX);
	__type(key, u64);
	__type(value, u64);
} task_history SEC(".maps");

/* The most CPU time any task seen so far had to come. */
u64 longest_ns = NSEC_PER_MSEC;

/* A task that outlives its expectation is one that nobody knows. */
static __always_inline u64 remaining_ns(struct task_struct *p, u64 unknown_ms)
{
	u64 *expected = identity_lookup(p, &task_history);
	u64 used = p->se.sum_exec_runtime;

	if (expected && used < *expected)
		return *expected - used;
	return unknown_ms * NSEC_PER_MSEC;
}

/*
 * How long a task waits for those with more to do, in ns: nothing for the
 * longest, nearly @patience_ms for one that is nearly done.
 */
static __always_inline u64 longest_patience(struct task_struct *p,
					    u64 patience_ms, u64 unknown_ms)
{
	u64 remaining = remaining_ns(p, unknown_ms), longest = longest_ns;

	if (remaining >= longest) {
		longest_ns = remaining;
		return 0;
	}
	return patience_ms * 1000 * ((longest - remaining) / NSEC_PER_USEC) /
	       (longest / NSEC_PER_USEC + 1) * NSEC_PER_USEC;
}

/* When a task is due that comes now: at once in its prelude, else by the above. */
static __always_inline u64 longest_key(struct task_struct *p, u64 prelude_us,
				       u64 patience_ms, u64 unknown_ms)
{
	u64 now = scx_bpf_now();

	if (prelude_left(p, prelude_us))
		return now;
	return now + longest_patience(p, patience_ms, unknown_ms);
}

#endif
