/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Which idle CPU a waking task takes. Each of these prefers some CPUs, and none
 * leaves the task waiting while another CPU of its mask idles. They return a
 * claimed CPU, or a negative number if none of those that they prefer is idle.
 */
#ifndef SCHEDAGENT_PLACEMENT_BPF_H
#define SCHEDAGENT_PLACEMENT_BPF_H

#include "queues.bpf.h"

#define PICK_IDLE_CORE \
	bpf_core_enum_value(enum scx_pick_idle_cpu_flags, SCX_PICK_IDLE_CORE)

/* How many CPUs are looked at for an idle one with the same cache. */
#define LLC_SCAN_CPUS 64

/* The kernel's number of the last-level cache of each CPU. */
extern const int sd_llc_id __ksym __weak;

static __always_inline s32 llc_of(u32 cpu)
{
	const int *id;

	if (!bpf_ksym_exists(&sd_llc_id))
		return -1;
	id = bpf_per_cpu_ptr(&sd_llc_id, cpu);
	return id ? *id : -1;
}

static __always_inline bool claim_cpu(const struct task_struct *p, s32 cpu)
{
	return bpf_cpumask_test_cpu(cpu, p->cpus_ptr) &&
	       scx_bpf_test_and_clear_cpu_idle(cpu);
}

/* The CPU that the task knows: its caches may still be warm. */
static __always_inline s32 claim_previous(const struct task_struct *p,
					  s32 prev_cpu)
{
	return claim_cpu(p, prev_cpu) ? prev_cpu : -1;
}

/* The CPU that the task knows, or one that shares its last-level cache. */
static __always_inline s32 claim_same_llc(const struct task_struct *p,
					  s32 prev_cpu)
{
	s32 llc = llc_of(prev_cpu), found = -1;
	u32 step;

	bpf_for(step, 0, LLC_SCAN_CPUS) {
		u32 cpu = ((u32)prev_cpu + step) % nr_cpus;

		if (step >= nr_cpus)
			break;
		if (llc_of(cpu) == llc && claim_cpu(p, cpu)) {
			found = cpu;
			break;
		}
	}
	return found;
}

/* A CPU whose whole core idles: nobody to share its units with. */
static __always_inline s32 claim_spread(const struct task_struct *p)
{
	return scx_bpf_pick_idle_cpu(p->cpus_ptr, PICK_IDLE_CORE);
}

/* The lowest CPU: the others can sleep deeply. */
static __always_inline s32 claim_packed(const struct task_struct *p)
{
	const struct cpumask *idle = scx_bpf_get_idle_cpumask();
	u32 cpu = bpf_cpumask_first_and(idle, p->cpus_ptr);

	scx_bpf_put_idle_cpumask(idle);
	return cpu < nr_cpus && scx_bpf_test_and_clear_cpu_idle(cpu) ? cpu : -1;
}

#endif
