/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Classes served round robin: where each CPU's round continues.
 */
#ifndef SCHEDAGENT_ROUNDS_BPF_H
#define SCHEDAGENT_ROUNDS_BPF_H

#include "common.bpf.h"

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, u32);
	__type(value, u32);
} round_next SEC(".maps");

/* The class that is due on this CPU. */
static __always_inline u32 round_start(void)
{
	u32 zero = 0, *next = bpf_map_lookup_elem(&round_next, &zero);

	return next ? *next : 0;
}

/* @class was served: the next one is due. */
static __always_inline void round_advance(u32 class)
{
	u32 zero = 0, *next = bpf_map_lookup_elem(&round_next, &zero);

	if (next)
		*next = class + 1;
}

#endif
