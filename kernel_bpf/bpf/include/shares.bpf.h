/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Classes with shares: each has a virtual time that grows by the CPU time of
 * its tasks, divided by its share, and the smallest is served first. A class
 * that had nothing to run starts again beside the others.
 */
#ifndef SCHEDAGENT_SHARES_BPF_H
#define SCHEDAGENT_SHARES_BPF_H

#include "classes.bpf.h"

/* Virtual time a class keeps as a credit when it had nothing to run. */
#define CLASS_CREDIT_NS (20 * NSEC_PER_MSEC)

#define NO_CLASS MAX_CLASSES

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, MAX_CLASSES);
	__type(key, u32);
	__type(value, u64);
} class_vtimes SEC(".maps");

u64 class_clock;

static __always_inline u64 *class_vtime(u32 class)
{
	return bpf_map_lookup_elem(&class_vtimes, &class);
}

/* For ops.enqueue: a class that comes back keeps only a small credit. */
static __always_inline void refresh_class(u32 class)
{
	u64 earliest = class_clock - CLASS_CREDIT_NS;
	u64 *vtime = class_vtime(class);

	if (vtime && time_before(*vtime, earliest))
		*vtime = earliest;
}

static __always_inline void charge_class(u32 class, u64 used_ns, u64 share)
{
	u64 *vtime = class_vtime(class);

	if (vtime)
		__sync_fetch_and_add(vtime, used_ns * 100 / share);
}

/* @class was served: the clock follows. */
static __always_inline void advance_class_clock(u32 class)
{
	u64 *vtime = class_vtime(class);

	if (vtime && time_before(class_clock, *vtime))
		class_clock = *vtime;
}

/*
 * The class that is due on this CPU and not in @tried; NO_CLASS for none.
 * @running has a task on the CPU that wants to continue: it counts as waiting.
 */
static __always_inline u32 next_class(u32 nr_classes, s32 cpu, u32 tried,
				      u32 running)
{
	u32 class, next = NO_CLASS;
	u64 earliest = 0, *vtime;

	bpf_for(class, 0, nr_classes) {
		if (tried & (1U << class))
			continue;
		if (class != running && !class_waiting(class, cpu))
			continue;
		vtime = class_vtime(class);
		if (!vtime ||
		    (next != NO_CLASS && !time_before(*vtime, earliest)))
			continue;
		next = class;
		earliest = *vtime;
	}
	return next;
}

/* For ops.dump: how much each class has had. */
static __always_inline void dump_class_vtimes(u32 nr_classes)
{
	u64 *vtime;
	u32 class;

	scx_dump("class clock: %llu\n", class_clock);
	bpf_for(class, 0, nr_classes) {
		vtime = class_vtime(class);
		if (vtime)
			scx_dump("  class %u: vtime %llu\n", class, *vtime);
	}
}

#endif
