/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * What the loader knows of a task: its class, by the identity of its program.
 */
#ifndef SCHEDAGENT_KNOWN_CLASS_BPF_H
#define SCHEDAGENT_KNOWN_CLASS_BPF_H

#include "identity.bpf.h"

#define TASK_CLASSES_MAX 4096
#define UNKNOWN_CLASS	 (~0U)

/* Filled by the loader: identity of a program -> class. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, TASK_CLASSES_MAX);
	__type(key, u64);
	__type(value, u32);
} task_class SEC(".maps");

static __always_inline u32 known_class(struct task_struct *p)
{
	u32 *class = identity_lookup(p, &task_class);

	return class ? *class : UNKNOWN_CLASS;
}

#endif
