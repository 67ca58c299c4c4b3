/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Preemption by rank: a task that wakes and finds no idle CPU asks one that
 * runs a task of a lower rank to look again. Only on a wake-up, only such a
 * CPU and each only once, or the preempted would kick in return.
 */
#ifndef SCHEDAGENT_PREEMPT_BPF_H
#define SCHEDAGENT_PREEMPT_BPF_H

#include "queues.bpf.h"

/* A CPU that runs nothing, or that was asked already, has no rank. */
#define NO_RANK 0

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, MAX_CPUS);
	__type(key, u32);
	__type(value, u32);
} running_rank SEC(".maps");

/* A task of @rank has @cpu from now on. */
static __always_inline void note_rank(u32 cpu, u32 rank)
{
	u32 *running = bpf_map_lookup_elem(&running_rank, &cpu);

	if (running)
		*running = rank;
}

static __always_inline bool preempt_cpu(u32 cpu, u32 rank)
{
	u32 *running = bpf_map_lookup_elem(&running_rank, &cpu);

	if (!running || *running == NO_RANK || *running >= rank)
		return false;
	*running = NO_RANK;
	scx_bpf_kick_cpu(cpu, KICK_PREEMPT);
	return true;
}

/* Look for such a CPU among @scan_cpus, from the task's last one on. */
static __always_inline void preempt_lower(struct task_struct *p, u32 rank,
					  u32 scan_cpus)
{
	u32 first = scx_bpf_task_cpu(p), step;

	bpf_for(step, 0, scan_cpus) {
		u32 cpu = (first + step) % nr_cpus;

		if (step >= nr_cpus)
			break;
		if (bpf_cpumask_test_cpu(cpu, p->cpus_ptr) &&
		    preempt_cpu(cpu, rank))
			break;
	}
}

#endif
