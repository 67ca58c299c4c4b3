/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Cgroup weights where the order is by time: how far a cgroup is ahead of what
 * it is due. A policy adds it to the keys of its tasks, whose order among each
 * other it leaves alone.
 *
 * Each cgroup has a virtual time, which grows by the CPU time of its own tasks
 * divided by their effective weight. Together they are due what all have used,
 * and so much does the clock advance. A cgroup that cannot use what it is due,
 * for want of tasks, falls behind by LEAD_CREDIT_NS at most, and none gets ahead
 * by more than is waited for (LEAD_MAX_NS). What is forgotten there is everybody
 * else's, so the clock goes by that: leads and lags stay even.
 *
 * Loses: cgroups whose tasks are pinned to a few busy CPUs of many are all
 * behind, and not told apart.
 */
#ifndef SCHEDAGENT_LEAD_BPF_H
#define SCHEDAGENT_LEAD_BPF_H

#include "cgroups.bpf.h"

/* In virtual time. */
#define LEAD_CREDIT_NS (20 * NSEC_PER_MSEC)

/* The longest that a lead lets a task wait. */
#define LEAD_MAX_NS (1200 * NSEC_PER_MSEC)

#define MOST_CLAIMS (1LL << 24)

static __always_inline s64 all_claims(const struct cgroup_totals *all)
{
	s64 claims = all->runnable;

	return claims < CLAIM_OF(1) ? CLAIM_OF(1) : claims;
}

/* The virtual time that all together are due in @ns, with every CPU busy. */
static __always_inline u64 as_lead(const struct cgroup_totals *all, u64 ns)
{
	return ns * CLAIM_OF(WEIGHT_DEFAULT) * scx_bpf_nr_cpu_ids() /
	       all_claims(all);
}

/*
 * For ops.runnable, instead of cgroup_runnable(). A cgroup that had nothing to
 * do left nothing to anybody: it begins beside the others.
 */
KEPT void lead_runnable(struct task_struct *p)
{
	struct cgroup_task *task = cgroup_task_of(p);
	struct cgroup_totals *all = cgroup_total();
	struct cgroup_node *node;

	if (!task || !all)
		return;
	cgroup_task_place(p, task);
	node = cgroup_node_at(task->node);
	if (node && node->tasks <= 0 && time_before(node->vtime, all->clock))
		node->vtime = all->clock;
	if (!task->exec_start)
		task->exec_start = p->se.sum_exec_runtime;
	cgroup_want(p, task);
}

/* For ops.stopping, and before lead_ns() of a running task. */
KEPT void lead_charge(struct task_struct *p)
{
	struct cgroup_task *task = cgroup_task_of(p);
	struct cgroup_totals *all = cgroup_total();
	struct cgroup_node *node;
	s64 claims, ahead, beyond;
	u64 used, weight;

	if (!task || !all)
		return;
	node = cgroup_node_at(task->node);
	if (!node)
		return;
	used = p->se.sum_exec_runtime - task->exec_start;
	task->exec_start += used;
	claims = node->tasks;
	if (claims < 1 || claims > MOST_CLAIMS)
		claims = CLAIM_OF(p->scx.weight);
	weight = effective_claim(task->node, claims);
	if (weight < LEAST_WEIGHT)
		weight = LEAST_WEIGHT;
	__sync_fetch_and_add(&node->vtime,
			     used * (CLAIM_OF(WEIGHT_DEFAULT) << WEIGHT_SHIFT) /
				     weight);
	__sync_fetch_and_add(&all->clock,
			     used * CLAIM_OF(WEIGHT_DEFAULT) / all_claims(all));
	ahead = node->vtime - all->clock;
	beyond = 0;
	if (ahead < -(s64)LEAD_CREDIT_NS)
		beyond = ahead + LEAD_CREDIT_NS;
	else if (ahead > (s64)as_lead(all, LEAD_MAX_NS))
		beyond = ahead - as_lead(all, LEAD_MAX_NS);
	if (!beyond)
		return;
	__sync_fetch_and_add(&node->vtime, -beyond);
	weight = (weight >> 8) * (beyond < 0 ? -beyond : beyond) /
		 ((u64)all_claims(all) << (WEIGHT_SHIFT - 8));
	__sync_fetch_and_add(&all->clock, beyond < 0 ? weight : -weight);
}

/*
 * How long the cgroup of a task has to wait until the others have caught up, in
 * ns: with every CPU busy they do so at this pace.
 */
KEPT u64 lead_ns(struct task_struct *p)
{
	struct cgroup_task *task = cgroup_task_of(p);
	struct cgroup_totals *all = cgroup_total();
	struct cgroup_node *node;
	u64 lead;

	if (!task || !all)
		return 0;
	node = cgroup_node_at(task->node);
	if (!node || time_before(node->vtime, all->clock))
		return 0;
	lead = (node->vtime - all->clock) * all_claims(all) /
	       CLAIM_OF(WEIGHT_DEFAULT) / scx_bpf_nr_cpu_ids();
	return lead < LEAD_MAX_NS ? lead : LEAD_MAX_NS;
}

#endif
