/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Cgroup weights: cpu.weight and cpu.idle, which the kernel leaves to the
 * policy. Each cgroup shares out the time of its parent by weight, among those
 * children and own tasks that want to run: what idles has no claim.
 *
 * No queue is added for that. A task has an effective weight: its part of its
 * cgroup, times the part of the cgroup in its parent, and so on to the root,
 * times all that is runnable. So the effective weights of all tasks add up to
 * their own ones, and where no cgroup differs they are the same.
 *
 * Include it before vtime.bpf.h: virtual time then grows by effective weights.
 * The policy puts CGROUP_CALLBACKS before its ops struct and CGROUP_OPS into
 * it, calls cgroup_task_init() in init_task, and before anything else
 * cgroup_runnable() in runnable and cgroup_quiescent() in quiescent. A kernel
 * that tells no policy of cgroups has neither callback, and all tasks are in
 * the root.
 *
 * To the verifier the sums of claims look like counters, which a policy could
 * go by. They are none as long as all that wants to run is counted once, so it
 * takes this code as a whole (verifier/logic/taint/limits.py): functions that
 * are KEPT have to be as they are here, and nothing else may touch their maps.
 */
#ifndef SCHEDAGENT_CGROUPS_BPF_H
#define SCHEDAGENT_CGROUPS_BPF_H

#include "common.bpf.h"

/* Cgroups with a node of their own; any further one shares its parent's. */
#define CGROUPS_MAX   4096
#define CGROUPS_DEPTH 16
#define ROOT_NODE     0

/* Claims are weights times ten: an idle cgroup weighs 3 of 1024, which is 0.3
 * of 100 (WEIGHT_IDLEPRIO in kernel/sched/sched.h). */
#define CLAIM_OF(weight) ((weight) * 10ULL)
#define IDLE_CLAIM	 3

/* Effective weights have so many binary places, and are at least 1/1024. */
#define WEIGHT_SHIFT  16
#define LEAST_WEIGHT  (1ULL << 6)
#define MOST_RUNNABLE (1LL << 30)

/* No slice is made shorter than that. */
#define LIGHT_SLICE_NS NSEC_PER_MSEC

/* Neither inlined nor fitted to its callers, so that it is the same code in
 * every policy. */
#define KEPT static __noinline __attribute__((used))

struct cgroup_node {
	struct bpf_spin_lock lock;
	u32 parent;
	u32 depth;
	u32 weight;	/* cpu.weight; 0: the node is free */
	u32 idle;	/* cpu.idle */
	u32 generation; /* of its use for a cgroup */
	s64 runnable;	/* claims of its tasks and children that want to run */
	s64 claim;	/* what of that its parent counts */
	s64 tasks;	/* claims of its own tasks */
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, CGROUPS_MAX);
	__type(key, u32);
	__type(value, struct cgroup_node);
} cgroup_nodes SEC(".maps");

struct cgroup_place {
	u32 node;
	bool own; /* not its parent's */
};

struct {
	__uint(type, BPF_MAP_TYPE_CGRP_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, int);
	__type(value, struct cgroup_place);
} cgroup_places SEC(".maps");

struct cgroup_task {
	u32 node;
	u32 claimed_of; /* the node that counts its claim */
	u32 generation; /* of that node */
	s64 claim;	/* 0: it does not want to run */
	bool placed;	/* node is that of its cgroup */

	/* For bandwidth.bpf.h: what it took of its budgets, and where it goes. */
	u64 taken_ns;
	u64 queue;
	u64 key;
	u64 slice_ns;
};

struct {
	__uint(type, BPF_MAP_TYPE_TASK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, int);
	__type(value, struct cgroup_task);
} cgroup_tasks SEC(".maps");

struct cgroup_totals {
	s64 runnable;  /* claims of all tasks that want to run */
	u32 next_node; /* where the search for a free node continues */
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, u32);
	__type(value, struct cgroup_totals);
} cgroup_totals SEC(".maps");

extern struct cgroup *bpf_cgroup_ancestor___sa(struct cgroup *cgrp,
					       int level) __ksym __weak;
extern struct cgroup *scx_bpf_task_cgroup___sa(
	struct task_struct *p) __ksym __weak;
extern void bpf_cgroup_release___sa(struct cgroup *cgrp) __ksym __weak;

static __always_inline struct cgroup_node *cgroup_node_at(u32 node)
{
	return bpf_map_lookup_elem(&cgroup_nodes, &node);
}

static __always_inline struct cgroup_totals *cgroup_total(void)
{
	u32 zero = 0;

	return bpf_map_lookup_elem(&cgroup_totals, &zero);
}

static __always_inline struct cgroup_task *cgroup_task_of(struct task_struct *p)
{
	return bpf_task_storage_get(&cgroup_tasks, p, NULL, 0);
}

static __always_inline u32 cgroup_node_of(struct cgroup *cgrp)
{
	struct cgroup_place *place;

	place = bpf_cgrp_storage_get(&cgroup_places, cgrp, NULL, 0);
	return place ? place->node : ROOT_NODE;
}

/*
 * Add @claim, of which its own tasks have @of_tasks, to what is runnable in a node, and to its ancestors what changes
 * there: a cgroup has its claim while anything below it wants to run. A node
 * that serves another cgroup by now is left alone.
 */
KEPT void cgroup_claim(u32 index, u32 generation, s64 claim, s64 of_tasks)
{
	struct cgroup_node *node;
	bool first = true;
	s64 due;
	u32 level, parent;

	bpf_for(level, 0, CGROUPS_DEPTH) {
		node = cgroup_node_at(index);
		if (!node)
			return;
		bpf_spin_lock(&node->lock);
		if (first && node->generation != generation) {
			bpf_spin_unlock(&node->lock);
			return;
		}
		node->runnable += claim;
		node->tasks += of_tasks;
		of_tasks = 0;
		due = node->idle ? IDLE_CLAIM : CLAIM_OF(node->weight);
		if (index == ROOT_NODE || node->runnable <= 0)
			due = 0;
		claim = due - node->claim;
		node->claim = due;
		parent = node->parent;
		bpf_spin_unlock(&node->lock);
		if (!claim)
			return;
		index = parent;
		first = false;
	}
}

/* For ops.init_task: without memory for its record a task is in the root. */
KEPT void cgroup_task_init(struct task_struct *p)
{
	bpf_task_storage_get(&cgroup_tasks, p, NULL,
			     BPF_LOCAL_STORAGE_GET_F_CREATE);
}

/*
 * Where the task is, when it first wants to run: init_task may not ask, and the
 * cgroup that it is given is none that a storage can be looked up by.
 */
static __always_inline void cgroup_task_place(struct task_struct *p,
					      struct cgroup_task *task)
{
#ifdef HAVE_CGROUP_OPS
	struct cgroup *cgrp;

	if (task->placed)
		return;
	cgrp = scx_bpf_task_cgroup___sa(p);
	if (!cgrp)
		return;
	task->node = cgroup_node_of(cgrp);
	task->placed = true;
	bpf_cgroup_release___sa(cgrp);
#endif
}

/* What the task claimed is no longer wanted. */
static __always_inline void cgroup_withdraw(struct cgroup_task *task)
{
	struct cgroup_totals *all = cgroup_total();

	if (!task->claim || !all)
		return;
	__sync_fetch_and_add(&all->runnable, -task->claim);
	cgroup_claim(task->claimed_of, task->generation, -task->claim,
		     -task->claim);
	task->claim = 0;
}

/* For ops.quiescent, first of all: the task wants no CPU any more. */
KEPT void cgroup_quiescent(struct task_struct *p)
{
	struct cgroup_task *task = cgroup_task_of(p);

	if (task)
		cgroup_withdraw(task);
}

/* The task wants a CPU. */
static __always_inline void cgroup_want(struct task_struct *p,
					struct cgroup_task *task)
{
	struct cgroup_totals *all = cgroup_total();
	struct cgroup_node *node;

	cgroup_withdraw(task);
	node = cgroup_node_at(task->node);
	if (!node || !all)
		return;
	task->claimed_of = task->node;
	task->generation = node->generation;
	task->claim = CLAIM_OF(p->scx.weight);
	__sync_fetch_and_add(&all->runnable, task->claim);
	cgroup_claim(task->claimed_of, task->generation, task->claim,
		     task->claim);
}

/* For ops.runnable, first of all. */
KEPT void cgroup_runnable(struct task_struct *p)
{
	struct cgroup_task *task = cgroup_task_of(p);

	if (!task)
		return;
	cgroup_task_place(p, task);
	cgroup_want(p, task);
}

/*
 * The part that a task of this claim has in all that is runnable, with
 * WEIGHT_SHIFT binary places.
 */
KEPT u64 effective_claim(u32 index, u64 claim)
{
	struct cgroup_totals *totals = cgroup_total();
	u64 part = claim << WEIGHT_SHIFT;
	s64 all = totals ? totals->runnable : 0, runnable;
	struct cgroup_node *node;
	u32 level;

	bpf_for(level, 0, CGROUPS_DEPTH) {
		node = cgroup_node_at(index);
		if (!node)
			break;
		runnable = node->runnable;
		if (runnable < 1)
			runnable = claim;
		if (index == ROOT_NODE) {
			if (all < 1 || all > MOST_RUNNABLE)
				all = runnable;
			return part * all / runnable;
		}
		part = part * (node->claim ?: IDLE_CLAIM) / runnable;
		index = node->parent;
	}
	return part;
}

/* The effective weight of a task, with WEIGHT_SHIFT binary places. */
KEPT u64 effective_weight(struct task_struct *p)
{
	struct cgroup_task *task = cgroup_task_of(p);
	u64 claim = CLAIM_OF(p->scx.weight), weight;

	if (!task)
		return (u64)p->scx.weight << WEIGHT_SHIFT;
	weight = effective_claim(task->node, claim) / CLAIM_OF(1);
	return weight < LEAST_WEIGHT ? LEAST_WEIGHT : weight;
}

/* CPU time in ns as the virtual time of a task. */
static __always_inline u64 virtual_time(struct task_struct *p, u64 used_ns)
{
	return used_ns * ((u64)WEIGHT_DEFAULT << WEIGHT_SHIFT) /
	       effective_weight(p);
}

/*
 * The slice of a task whose cgroup leaves it less than its own weight: shorter
 * by as much, or what it is due in a second would come in one slice.
 */
static __always_inline u64 lighter_slice(struct task_struct *p, u64 slice_ns)
{
	u64 own = (u64)p->scx.weight << WEIGHT_SHIFT;
	u64 weight = effective_weight(p), light;

	if (weight >= own)
		return slice_ns;
	light = slice_ns * (weight >> 8) / (own >> 8);
	return light < LIGHT_SLICE_NS ? LIGHT_SLICE_NS : light;
}

/*
 * The slice of a task where slices alone share the CPU, as tasks are served
 * round robin: shorter or longer, as its cgroup leaves it less or more than its
 * own weight.
 */
static __always_inline u64 group_slice(struct task_struct *p, u64 slice_ns)
{
	u64 own = (u64)p->scx.weight << WEIGHT_SHIFT;

	return clamp_slice(slice_ns * (effective_weight(p) >> 8) / (own >> 8));
}

#ifdef HAVE_CGROUP_OPS

/* Take a free node; ROOT_NODE if there is none. */
KEPT u32 take_cgroup_node(u32 weight)
{
	struct cgroup_totals *all = cgroup_total();
	struct cgroup_node *node;
	u32 round, index;

	if (!all)
		return ROOT_NODE;
	bpf_for(round, 0, CGROUPS_MAX) {
		index = 1 + all->next_node++ % (CGROUPS_MAX - 1);
		node = cgroup_node_at(index);
		if (node &&
		    !__sync_val_compare_and_swap(&node->weight, 0, weight))
			return index;
	}
	return ROOT_NODE;
}

static __always_inline u32 parent_node(struct cgroup *cgrp)
{
	struct cgroup *parent;
	u32 index;

	parent = bpf_cgroup_ancestor___sa(cgrp, cgrp->level - 1);
	if (!parent)
		return ROOT_NODE;
	index = cgroup_node_of(parent);
	bpf_cgroup_release___sa(parent);
	return index;
}

/* For ops.cgroup_init; never fails, or no cgroup could be made any more. */
static __always_inline void cgroup_enter(struct cgroup *cgrp, u32 weight,
					 bool idle)
{
	struct cgroup_node *node, *above;
	struct cgroup_place *place;

	place = bpf_cgrp_storage_get(&cgroup_places, cgrp, NULL,
				     BPF_LOCAL_STORAGE_GET_F_CREATE);
	if (!place || !cgrp->level)
		return;
	place->node = parent_node(cgrp);
	above = cgroup_node_at(place->node);
	if (!above || above->depth + 2 >= CGROUPS_DEPTH)
		return;
	weight = take_cgroup_node(weight);
	node = cgroup_node_at(weight);
	if (!node || weight == ROOT_NODE)
		return;
	node->parent = place->node;
	node->depth = above->depth + 1;
	node->idle = idle;
	place->node = weight;
	place->own = true;
}

/* The node of a cgroup that is not its parent's, else ROOT_NODE. */
static __always_inline u32 own_cgroup_node(struct cgroup *cgrp)
{
	struct cgroup_place *place;

	place = bpf_cgrp_storage_get(&cgroup_places, cgrp, NULL, 0);
	return place && place->own ? place->node : ROOT_NODE;
}

/* For ops.cgroup_exit: what is still counted there is no more. */
static __always_inline void cgroup_leave(struct cgroup *cgrp)
{
	u32 index = own_cgroup_node(cgrp), parent;
	struct cgroup_node *node = cgroup_node_at(index), *above;
	s64 claim;

	if (!node || index == ROOT_NODE)
		return;
	bpf_spin_lock(&node->lock);
	parent = node->parent;
	claim = node->claim;
	node->runnable = 0;
	node->tasks = 0;
	node->claim = 0;
	node->generation++;
	node->weight = 0;
	bpf_spin_unlock(&node->lock);
	above = cgroup_node_at(parent);
	if (above && claim)
		cgroup_claim(parent, above->generation, -claim, 0);
}

/* For ops.cgroup_set_weight and ops.cgroup_set_idle. */
static __always_inline void cgroup_reweigh(struct cgroup *cgrp, u32 weight,
					   s32 idle)
{
	u32 index = own_cgroup_node(cgrp);
	struct cgroup_node *node = cgroup_node_at(index);

	if (!node || index == ROOT_NODE)
		return;
	if (weight)
		node->weight = weight;
	if (idle >= 0)
		node->idle = idle;
	cgroup_claim(index, node->generation, 0, 0);
}

/* For ops.cgroup_move; the task is in no queue, and claims nothing. */
static __always_inline void cgroup_task_move(struct task_struct *p,
					     struct cgroup *to)
{
	struct cgroup_task *task = cgroup_task_of(p);

	if (!task)
		return;
	task->node = cgroup_node_of(to);
	task->placed = true;
}

#ifdef HAVE_CGROUP_SET_IDLE
#define CGROUP_IDLE_CALLBACK                                           \
	void SCX_CALLBACK(limits_cgroup_set_idle, struct cgroup *cgrp, \
			  bool idle)                                   \
	{                                                              \
		cgroup_reweigh(cgrp, 0, idle);                         \
	}
#define INIT_IDLE(args) ((args)->sched_idle)
#else
#define CGROUP_IDLE_CALLBACK
#define INIT_IDLE(args) false
#endif

#define CGROUP_WEIGHT_CALLBACKS                                          \
	void SCX_CALLBACK(limits_cgroup_move, struct task_struct *p,     \
			  struct cgroup *from, struct cgroup *to)        \
	{                                                                \
		cgroup_task_move(p, to);                                 \
	}                                                                \
	void SCX_CALLBACK(limits_cgroup_set_weight, struct cgroup *cgrp, \
			  u32 weight)                                    \
	{                                                                \
		cgroup_reweigh(cgrp, weight, -1);                        \
	}                                                                \
	CGROUP_IDLE_CALLBACK

#define CGROUP_CALLBACKS                                                    \
	s32 SCX_CALLBACK_SLEEPABLE(limits_cgroup_init, struct cgroup *cgrp, \
				   struct scx_cgroup_init_args *args)       \
	{                                                                   \
		cgroup_enter(cgrp, args->weight, INIT_IDLE(args));          \
		return 0;                                                   \
	}                                                                   \
	void SCX_CALLBACK(limits_cgroup_exit, struct cgroup *cgrp)          \
	{                                                                   \
		cgroup_leave(cgrp);                                         \
	}                                                                   \
	CGROUP_WEIGHT_CALLBACKS

#ifdef HAVE_CGROUP_SET_IDLE
#define CGROUP_OPS \
	CGROUP_WEIGHT_OPS, .cgroup_set_idle = (void *)limits_cgroup_set_idle
#else
#define CGROUP_OPS CGROUP_WEIGHT_OPS
#endif

#define CGROUP_WEIGHT_OPS                          \
	.cgroup_init = (void *)limits_cgroup_init, \
	.cgroup_exit = (void *)limits_cgroup_exit, \
	.cgroup_move = (void *)limits_cgroup_move, \
	.cgroup_set_weight = (void *)limits_cgroup_set_weight

#else
#define CGROUP_CALLBACKS
#define CGROUP_OPS .flags = 0
#endif

#endif
